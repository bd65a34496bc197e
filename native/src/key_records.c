#define PY_SSIZE_T_CLEAN

#include "key_records.h"

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "blake2b.h"
#include "checksum.h"

#define RECORD_BYTES ((Py_ssize_t)28)

/* Bytes of names and bodies from which on other threads run meanwhile. */
#define MANY_BYTES ((Py_ssize_t)16 * 1024)

/* What is known of some entries: an array for each, with one value per entry. */
typedef struct {
    Py_buffer names, data, seconds, starts, sizes;
} Entries;

static uint8_t *put_number(uint8_t *record, uint32_t number)
{
    for (int at = 0; at < 4; at++)
        *record++ = (uint8_t)(number >> 8 * at);
    return record;
}

static void make_records(const Entries *entries, Py_ssize_t count, uint8_t *record)
{
    size_t width = (size_t)(entries->names.len / count);
    const uint8_t *name = entries->names.buf, *data = entries->data.buf;
    const uint32_t *seconds = entries->seconds.buf;
    const int64_t *starts = entries->starts.buf, *sizes = entries->sizes.buf;
    for (Py_ssize_t at = 0; at < count; at++, name += width) {
        blake2b(name, width, record);
        record = put_number(record + BLAKE2B_BYTES, seconds[at]);
        record = put_number(record, (uint32_t)sizes[at]);
        record = put_number(record, add_to_crc32(0, data + starts[at], (size_t)sizes[at]));
    }
}

/* Tell whether there is a name, and a body within the data, for each entry. */
static bool are_whole(const Entries *entries, Py_ssize_t count)
{
    Py_ssize_t numbers = count * (Py_ssize_t)sizeof(int64_t);
    if (count == 0 || entries->names.len % count || entries->starts.len != numbers || entries->sizes.len != numbers)
        return false;
    const int64_t *starts = entries->starts.buf, *sizes = entries->sizes.buf;
    for (Py_ssize_t at = 0; at < count; at++)
        if (starts[at] < 0 || sizes[at] < 0 || starts[at] > entries->data.len ||
            sizes[at] > entries->data.len - starts[at] || sizes[at] > UINT32_MAX)
            return false;
    return true;
}

static PyObject *records_of(const Entries *entries)
{
    Py_ssize_t count = entries->seconds.len / (Py_ssize_t)sizeof(uint32_t);
    if (!are_whole(entries, count)) {
        PyErr_SetString(PyExc_ValueError, "each entry has a name of one size, and a body within the data");
        return NULL;
    }
    PyObject *records = PyBytes_FromStringAndSize(NULL, count * RECORD_BYTES);
    if (records == NULL)
        return NULL;
    uint8_t *record = (uint8_t *)PyBytes_AsString(records);
    int64_t bodies = 0;
    for (Py_ssize_t at = 0; at < count && bodies < MANY_BYTES; at++)
        bodies += ((const int64_t *)entries->sizes.buf)[at];
    if (entries->names.len + bodies < MANY_BYTES) {
        make_records(entries, count, record);
    } else {
        Py_BEGIN_ALLOW_THREADS
        make_records(entries, count, record);
        Py_END_ALLOW_THREADS
    }
    return records;
}

static PyObject *key_records(PyObject *module, PyObject *args)
{
    (void)module;
    Entries entries;
    if (!PyArg_ParseTuple(args, "y*y*y*y*y*:key_records", &entries.names, &entries.data, &entries.seconds,
                          &entries.starts, &entries.sizes))
        return NULL;
    PyObject *records = records_of(&entries);
    PyBuffer_Release(&entries.names);
    PyBuffer_Release(&entries.data);
    PyBuffer_Release(&entries.seconds);
    PyBuffer_Release(&entries.starts);
    PyBuffer_Release(&entries.sizes);
    return records;
}

static PyMethodDef FUNCTIONS[] = {
    {"key_records", key_records, METH_VARARGS, PyDoc_STR("Make the records of entries with idempotency keys.")},
    {NULL, NULL, 0, NULL},
};

int add_key_records(PyObject *module)
{
    prepare_crc32();
    return PyModule_AddFunctions(module, FUNCTIONS);
}
