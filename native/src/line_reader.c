#define PY_SSIZE_T_CLEAN

#include "line_reader.h"

#include <stdbool.h>
#include <stdlib.h>

#include "lines.h"

/* Bytes of a step from which on other threads run meanwhile: a shorter one takes less than they would wait. */
#define LONG_BYTES ((Py_ssize_t)16 * 1024)

typedef struct {
    PyObject_HEAD
    PyObject *body;
    Lines lines;
    bool busy; /* another thread is in a step of this reader */
} LineReader;

static PyObject *new_reader(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    PyObject *body;
    int pairs;
    long long low, high;
    if (keywords != NULL && PyDict_Size(keywords) != 0) {
        PyErr_SetString(PyExc_TypeError, "LineReader takes no keyword arguments");
        return NULL;
    }
    if (!PyArg_ParseTuple(args, "SpLL:LineReader", &body, &pairs, &low, &high))
        return NULL;
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    LineReader *self = (LineReader *)allocate(type, 0);
    if (self == NULL)
        return NULL;
    Py_INCREF(body);
    self->body = body;
    self->busy = false;
    self->lines = (Lines){.body = (const uint8_t *)PyBytes_AsString(body),
                          .size = (size_t)PyBytes_Size(body),
                          .pairs = pairs,
                          .low = low,
                          .high = high};
    return (PyObject *)self;
}

static void free_reader(PyObject *object)
{
    LineReader *self = (LineReader *)object;
    PyTypeObject *type = Py_TYPE(object);
    free_lines(&self->lines);
    Py_XDECREF(self->body);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(object);
    Py_DECREF(type);
}

/* Begin a step; false, with an exception set, if another thread is in one. */
static bool begin(LineReader *self)
{
    if (self->busy) {
        PyErr_SetString(PyExc_RuntimeError, "this LineReader is in use by another thread");
        return false;
    }
    self->busy = true;
    return true;
}

/* End a step; false, with an exception set, if it had no memory. */
static bool end(LineReader *self)
{
    self->busy = false;
    if (!self->lines.no_memory)
        return true;
    self->lines.no_memory = false;
    PyErr_NoMemory();
    return false;
}

static PyObject *read_step(PyObject *object, PyObject *args)
{
    LineReader *self = (LineReader *)object;
    Py_ssize_t at, stop;
    if (!PyArg_ParseTuple(args, "nn:read", &at, &stop))
        return NULL;
    if (at < 0 || stop < at || (size_t)stop > self->lines.size) {
        PyErr_SetString(PyExc_ValueError, "these are no places of the body");
        return NULL;
    }
    if (!begin(self))
        return NULL;
    size_t after;
    if (stop - at < LONG_BYTES) {
        after = read_lines(&self->lines, (size_t)at, (size_t)stop);
    } else {
        Py_BEGIN_ALLOW_THREADS
        after = read_lines(&self->lines, (size_t)at, (size_t)stop);
        Py_END_ALLOW_THREADS
    }
    return end(self) ? PyLong_FromSize_t(after) : NULL;
}

static size_t pack_and_clear(Lines *lines, bool alone, uint8_t *to)
{
    size_t size = pack_maps(lines, alone, to);
    clear_lines(lines);
    return size;
}

static PyObject *take(PyObject *object, PyObject *args)
{
    LineReader *self = (LineReader *)object;
    int alone;
    if (!PyArg_ParseTuple(args, "p:take", &alone) || !begin(self))
        return NULL;
    size_t most = most_map_bytes(&self->lines), maps = self->lines.maps, records = self->lines.records, size = 0;
    uint8_t *packed = malloc(most);
    if (packed == NULL) {
        self->lines.no_memory = true;
    } else if (most < (size_t)LONG_BYTES) {
        size = pack_and_clear(&self->lines, alone, packed);
    } else {
        Py_BEGIN_ALLOW_THREADS
        size = pack_and_clear(&self->lines, alone, packed);
        Py_END_ALLOW_THREADS
    }
    PyObject *result = NULL;
    if (end(self))
        result = Py_BuildValue("y#nn", (const char *)packed, (Py_ssize_t)size, (Py_ssize_t)maps, (Py_ssize_t)records);
    free(packed);
    return result;
}

static PyObject *get_shapes(PyObject *object, void *closure)
{
    (void)closure;
    const Lines *lines = &((LineReader *)object)->lines;
    return PyLong_FromSize_t(lines->shapes - lines->odd_shapes);
}

static PyObject *get_is_full(PyObject *object, void *closure)
{
    (void)closure;
    return PyBool_FromLong(((LineReader *)object)->lines.is_full);
}

static PyObject *get_is_left(PyObject *object, void *closure)
{
    (void)closure;
    return PyBool_FromLong(((LineReader *)object)->lines.is_left);
}

static PyMethodDef METHODS[] = {
    {"read", read_step, METH_VARARGS,
     PyDoc_STR("Read the lines that begin from one offset on and before another: the offset after the last of them.")},
    {"take", take, METH_VARARGS, PyDoc_STR("Return the lines as columnar maps, with the numbers of maps and of rows.")},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef ATTRIBUTES[] = {
    {"shapes", get_shapes, NULL, PyDoc_STR("The shapes of the lines that were kept since the last `take`."), NULL},
    {"is_left", get_is_left, NULL, PyDoc_STR("Whether the line where `read` has stopped is left."), NULL},
    {"is_full", get_is_full, NULL, PyDoc_STR("Whether `read` goes on only after a `take`."), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot SLOTS[] = {
    {Py_tp_doc, (void *)PyDoc_STR("Read the plain lines of a body.")},
    {Py_tp_new, (void *)new_reader},
    {Py_tp_dealloc, (void *)free_reader},
    {Py_tp_methods, METHODS},
    {Py_tp_getset, ATTRIBUTES},
    {0, NULL},
};

static PyType_Spec SPEC = {
    .name = "arcpipe_native._kernel.LineReader",
    .basicsize = sizeof(LineReader),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = SLOTS,
};

/* Make a number that differs between processes of that of Python's own hashes. */
static int seed_hashes(void)
{
    PyObject *text = PyUnicode_FromString("arcpipe_native");
    Py_hash_t hash = text != NULL ? PyObject_Hash(text) : -1;
    Py_XDECREF(text);
    hash_seed = (uint64_t)hash;
    return text == NULL ? -1 : 0;
}

int add_line_reader(PyObject *module)
{
    if (!prepare_numbers()) {
        PyErr_SetString(PyExc_ImportError, "the C library has no locale \"C\"");
        return -1;
    }
    PyObject *type = PyType_FromModuleAndSpec(module, &SPEC, NULL);
    int done = type == NULL || seed_hashes() < 0 ? -1 : PyModule_AddType(module, (PyTypeObject *)type);
    Py_XDECREF(type);
    return done;
}
