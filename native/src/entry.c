#include "entry.h"

#include <string.h>

#include "checksum.h"
#include "objects.h"

/* Bytes before a payload: its length, the timestamp, and the checksum, each with its highest byte first. */
#define HEADER_BYTES ((Py_ssize_t)16)
/* Bytes of a payload, at most. */
#define MOST_BYTES ((Py_ssize_t)UINT32_MAX)

typedef struct {
    Bytes prefix, front;
    uint32_t crc; /* of the prefix */
    uint64_t timestamp;
} Head;

static uint8_t *put_number(uint8_t *at, uint64_t number, int bytes)
{
    for (int byte = bytes - 1; byte >= 0; byte--)
        *at++ = (uint8_t)(number >> 8 * byte);
    return at;
}

static PyObject *join(const Head *head, const uint8_t *body, Py_ssize_t size)
{
    Py_ssize_t prefix_bytes = head->prefix.size, front_bytes = head->front.size;
    if (prefix_bytes > MOST_BYTES || front_bytes > MOST_BYTES || size > MOST_BYTES - prefix_bytes - front_bytes) {
        PyErr_SetString(PyExc_OverflowError, "an entry must be less than 4 GB");
        return NULL;
    }
    Py_ssize_t length = prefix_bytes + front_bytes + size;
    PyObject *entry = PyBytes_FromStringAndSize(NULL, HEADER_BYTES + length);
    if (entry == NULL)
        return NULL;
    uint8_t *header = (uint8_t *)PyBytes_AsString(entry), *payload = header + HEADER_BYTES;
    uint8_t *more = payload + prefix_bytes;
    memcpy(payload, head->prefix.data, (size_t)prefix_bytes);
    memcpy(more, head->front.data, (size_t)front_bytes);
    if (size > 0)
        memcpy(more + front_bytes, body, (size_t)size);
    header = put_number(header, (uint64_t)length, 4);
    header = put_number(header, head->timestamp, 8);
    put_number(header, add_to_crc32(head->crc, more, (size_t)(front_bytes + size)), 4);
    return entry;
}

/* Read an integer that is not negative; false, with an exception set, if it is none or above `most`. */
static bool read_number(PyObject *object, uint64_t most, uint64_t *number)
{
    *number = PyLong_AsUnsignedLongLong(object);
    if (*number == UINT64_MAX && PyErr_Occurred())
        return false;
    if (*number > most)
        PyErr_SetString(PyExc_OverflowError, "a checksum has 32 bits");
    return *number <= most;
}

static PyObject *join_entry(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    if (count != 5) {
        PyErr_SetString(PyExc_TypeError, "join_entry takes 5 arguments");
        return NULL;
    }
    Head head;
    uint64_t crc;
    if (!read_bytes(args[0], &head.prefix) || !read_number(args[1], UINT32_MAX, &crc) ||
        !read_bytes(args[2], &head.front) || !read_number(args[4], UINT64_MAX, &head.timestamp))
        return NULL;
    head.crc = (uint32_t)crc;
    if (PyBytes_Check(args[3]))
        return join(&head, bytes_of(args[3]), PyBytes_Size(args[3]));
    Py_buffer body;
    if (PyObject_GetBuffer(args[3], &body, PyBUF_SIMPLE) < 0)
        return NULL;
    PyObject *entry = join(&head, body.buf, body.len);
    PyBuffer_Release(&body);
    return entry;
}

static PyMethodDef FUNCTIONS[] = {
    {"join_entry", (PyCFunction)(void (*)(void))join_entry, METH_FASTCALL,
     PyDoc_STR("Pack an entry of the WAL in one piece.")},
    {NULL, NULL, 0, NULL},
};

int add_entry(PyObject *module)
{
    prepare_crc32();
    return PyModule_AddFunctions(module, FUNCTIONS);
}
