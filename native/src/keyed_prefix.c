#include "keyed_prefix.h"

#include <stddef.h>
#include <string.h>
#include <structmember.h>

#include "checksum.h"
#include "objects.h"

/* Bytes of a key that is not left to Python, at most. */
#define MOST_KEY_BYTES 128

typedef struct {
    PyObject_HEAD
    /* As the methods in Python set them, or NULL. */
    PyObject *front, *front_crc; /* all before the key, and its CRC32 */
    PyObject *owner;             /* the bytes before a key in its identity */
    PyObject *key, *claimed, *data, *crc; /* of the entry: `claimed` is the identity of the key */
    Py_ssize_t key_bytes;        /* which the front says */
} KeyedPrefix;

static int visit_prefix(PyObject *object, visitproc visit, void *arg)
{
    KeyedPrefix *self = (KeyedPrefix *)object;
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(self->front);
    Py_VISIT(self->front_crc);
    Py_VISIT(self->owner);
    Py_VISIT(self->key);
    Py_VISIT(self->claimed);
    Py_VISIT(self->data);
    Py_VISIT(self->crc);
    return 0;
}

static int clear_prefix(PyObject *object)
{
    KeyedPrefix *self = (KeyedPrefix *)object;
    put_object(&self->front, NULL);
    put_object(&self->front_crc, NULL);
    put_object(&self->owner, NULL);
    put_object(&self->key, NULL);
    put_object(&self->claimed, NULL);
    put_object(&self->data, NULL);
    put_object(&self->crc, NULL);
    return 0;
}

static void free_prefix(PyObject *object)
{
    PyObject_GC_UnTrack(object);
    clear_prefix(object);
    free_object(object);
}

/* Tell whether this is a key of the length that is expected, and all is there that `make` needs. */
static bool is_usual(const KeyedPrefix *self, PyObject *key, long long *front_crc)
{
    return PyBytes_CheckExact(key) && PyBytes_Size(key) == self->key_bytes && self->key_bytes <= MOST_KEY_BYTES &&
           self->front != NULL && PyBytes_CheckExact(self->front) && self->owner != NULL &&
           PyBytes_CheckExact(self->owner) &&            read_integer(self->front_crc, 0, UINT32_MAX, front_crc);
}

/* Make new bytes of two; NULL with an exception set. */
static PyObject *joined(PyObject *first, PyObject *second)
{
    Py_ssize_t first_bytes = PyBytes_Size(first), second_bytes = PyBytes_Size(second);
    PyObject *both = PyBytes_FromStringAndSize(NULL, first_bytes + second_bytes);
    if (both != NULL) {
        char *to = PyBytes_AsString(both);
        memcpy(to, bytes_of(first), (size_t)first_bytes);
        memcpy(to + first_bytes, bytes_of(second), (size_t)second_bytes);
    }
    return both;
}

static PyObject *make(PyObject *object, PyObject *key)
{
    KeyedPrefix *self = (KeyedPrefix *)object;
    long long front_crc;
    if (!is_usual(self, key, &front_crc))
        return PyObject_CallMethod(object, "make_unusual", "O", key);
    PyObject *data = joined(self->front, key), *claimed = joined(self->owner, key);
    PyObject *crc =
        PyLong_FromUnsignedLong(add_to_crc32((uint32_t)front_crc, bytes_of(key), (size_t)self->key_bytes));
    if (data == NULL || claimed == NULL || crc == NULL) {
        Py_XDECREF(data);
        Py_XDECREF(claimed);
        Py_XDECREF(crc);
        return NULL;
    }
    Py_INCREF(key);
    put_object(&self->key, key);
    put_object(&self->claimed, claimed);
    put_object(&self->data, data);
    put_object(&self->crc, crc);
    Py_INCREF(object);
    return object;
}

static PyMethodDef METHODS[] = {
    {"make", make, METH_O, PyDoc_STR("Make it that of an entry with this key; return itself.")},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef MEMBERS[] = {
    {"_front", T_OBJECT_EX, offsetof(KeyedPrefix, front), 0, NULL},
    {"_front_crc", T_OBJECT_EX, offsetof(KeyedPrefix, front_crc), 0, NULL},
    {"owner", T_OBJECT_EX, offsetof(KeyedPrefix, owner), 0, NULL},
    {"claimed", T_OBJECT_EX, offsetof(KeyedPrefix, claimed), 0, NULL},
    {"_key", T_OBJECT_EX, offsetof(KeyedPrefix, key), 0, NULL},
    {"_key_bytes", T_PYSSIZET, offsetof(KeyedPrefix, key_bytes), 0, NULL},
    {"data", T_OBJECT_EX, offsetof(KeyedPrefix, data), 0, NULL},
    {"crc", T_OBJECT_EX, offsetof(KeyedPrefix, crc), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot SLOTS[] = {
    {Py_tp_doc, (void *)PyDoc_STR("Make the prefixes of entries with keys of one length.")},
    {Py_tp_dealloc, (void *)free_prefix},
    {Py_tp_traverse, (void *)visit_prefix},
    {Py_tp_clear, (void *)clear_prefix},
    {Py_tp_methods, METHODS},
    {Py_tp_members, MEMBERS},
    {0, NULL},
};

static PyType_Spec SPEC = {
    .name = "arcpipe_native._kernel.KeyedPrefix",
    .basicsize = sizeof(KeyedPrefix),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = SLOTS,
};

int add_keyed_prefix(PyObject *module)
{
    prepare_crc32();
    return add_type(module, &SPEC);
}
