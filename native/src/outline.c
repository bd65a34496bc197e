#include "outline.h"

#include <stddef.h>
#include <string.h>
#include <structmember.h>

#include "objects.h"

/* Bytes of a key, and digits of a length, that are not left to Python, at most. */
#define MOST_KEY_BYTES 128
#define MOST_DIGITS 12

/* Bytes that are the same in all heads of an outline. */
typedef struct {
    const uint8_t *data;
    size_t size;
} Piece;

typedef struct {
    PyObject_HEAD
    PyObject *head;      /* the meaning of the heads */
    PyObject *by_python; /* the same outline in Python */
    PyObject *owners[3]; /* of the bytes of the pieces; NULL for one that is not there */
    Piece front, middle, back;
    bool has_key, key_is_first;
} Outline;

/* Whether a sign may be in a bare key: no quote, comma, semicolon or backslash. */
static bool is_bare[256];

static void prepare_signs(void)
{
    for (int sign = '!'; sign <= '~'; sign++)
        is_bare[sign] = sign != '"' && sign != ',' && sign != ';' && sign != '\\';
}

static Piece piece_of(PyObject *bytes)
{
    return (Piece){.data = bytes_of(bytes), .size = (size_t)PyBytes_Size(bytes)};
}

static PyObject *new_outline(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    PyObject *by_python, *front, *middle, *back;
    int key_is_first;
    if (keywords != NULL && PyDict_Size(keywords) != 0) {
        PyErr_SetString(PyExc_TypeError, "Outline takes no keyword arguments");
        return NULL;
    }
    if (!PyArg_ParseTuple(args, "OSOSp:Outline", &by_python, &front, &middle, &back, &key_is_first))
        return NULL;
    if (middle != Py_None && !PyBytes_Check(middle)) {
        PyErr_SetString(PyExc_TypeError, "the middle piece must be bytes or None");
        return NULL;
    }
    PyObject *head = PyObject_GetAttrString(by_python, "head");
    if (head == NULL)
        return NULL;
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Outline *self = (Outline *)allocate(type, 0);
    if (self == NULL) {
        Py_DECREF(head);
        return NULL;
    }
    self->head = head;
    Py_INCREF(by_python);
    self->by_python = by_python;
    Py_INCREF(front);
    self->owners[0] = front;
    self->front = piece_of(front);
    Py_INCREF(back);
    self->owners[2] = back;
    self->back = piece_of(back);
    self->has_key = middle != Py_None;
    self->key_is_first = key_is_first;
    if (self->has_key) {
        Py_INCREF(middle);
        self->owners[1] = middle;
        self->middle = piece_of(middle);
    }
    return (PyObject *)self;
}

static int visit_outline(PyObject *object, visitproc visit, void *arg)
{
    Outline *self = (Outline *)object;
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(self->head);
    Py_VISIT(self->by_python);
    return 0;
}

static int clear_outline(PyObject *object)
{
    Outline *self = (Outline *)object;
    put_object(&self->head, NULL);
    put_object(&self->by_python, NULL);
    return 0;
}

static void free_outline(PyObject *object)
{
    Outline *self = (Outline *)object;
    PyObject_GC_UnTrack(object);
    clear_outline(object);
    for (int place = 0; place < 3; place++)
        put_object(&self->owners[place], NULL);
    free_object(object);
}

/* Go over a piece that must be next; false if it is not. */
static bool pass(const uint8_t **at, const uint8_t *end, Piece piece)
{
    if ((size_t)(end - *at) < piece.size || memcmp(*at, piece.data, piece.size) != 0)
        return false;
    *at += piece.size;
    return true;
}

/* Read digits up to the end of their line; false if there is anything else. */
static bool read_length(const uint8_t **at, const uint8_t *end, long long *length)
{
    const uint8_t *pos = *at, *limit = end - pos > MOST_DIGITS ? pos + MOST_DIGITS : end;
    long long value = 0;
    for (; pos < limit && *pos >= '0' && *pos <= '9'; pos++)
        value = value * 10 + (*pos - '0');
    if (pos == *at || pos == end || *pos != '\r')
        return false;
    *at = pos;
    *length = value;
    return true;
}

/* Read a bare key up to the end of its line; false if there is anything else. */
static bool read_key(const uint8_t **at, const uint8_t *end, const uint8_t **key, size_t *key_bytes)
{
    const uint8_t *pos = *at, *limit = end - pos > MOST_KEY_BYTES ? pos + MOST_KEY_BYTES : end;
    while (pos < limit && is_bare[*pos])
        pos++;
    if (pos == *at || pos == end || *pos != '\r')
        return false;
    *key = *at;
    *key_bytes = (size_t)(pos - *at);
    *at = pos;
    return true;
}

static PyObject *make_cut(Py_ssize_t after, long long length, const uint8_t *key, size_t key_bytes)
{
    PyObject *values[4] = {PyLong_FromSsize_t(after), PyLong_FromLongLong(length),
                           PyBytes_FromStringAndSize((const char *)key, (Py_ssize_t)key_bytes),
                           PyBytes_FromStringAndSize(NULL, 0)};
    PyObject *cut = NULL;
    if (values[0] != NULL && values[1] != NULL && values[2] != NULL && values[3] != NULL)
        cut = PyTuple_Pack(4, values[0], values[1], values[2], values[3]);
    for (int place = 0; place < 4; place++)
        Py_XDECREF(values[place]);
    return cut;
}

static PyObject *cut(PyObject *object, PyObject *const *args, Py_ssize_t count)
{
    Outline *self = (Outline *)object;
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "cut takes 2 arguments");
        return NULL;
    }
    PyObject *data = args[0];
    long long start = 0, length;
    if (!PyBytes_CheckExact(data) || !read_integer(args[1], 0, PyBytes_Size(data), &start))
        return PyObject_CallMethod(self->by_python, "cut", "OO", data, args[1]);
    const uint8_t *first = bytes_of(data), *at = first + start, *end = first + PyBytes_Size(data), *key = at;
    size_t key_bytes = 0;
    bool is_first = self->has_key && self->key_is_first, is_second = self->has_key && !self->key_is_first;
    if (!pass(&at, end, self->front))
        Py_RETURN_NONE; /* another outline */
    bool is_usual = (!is_first || (read_key(&at, end, &key, &key_bytes) && pass(&at, end, self->middle))) &&
                    read_length(&at, end, &length) &&
                    (!is_second || (pass(&at, end, self->middle) && read_key(&at, end, &key, &key_bytes))) &&
                    pass(&at, end, self->back);
    if (!is_usual)
        return PyObject_CallMethod(self->by_python, "cut", "OO", data, args[1]);
    return make_cut(at - first, length, key, key_bytes);
}

static PyMethodDef METHODS[] = {
    {"cut", (PyCFunction)(void (*)(void))cut, METH_FASTCALL, PyDoc_STR("Cut a head, as the outline in Python does.")},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef MEMBERS[] = {
    {"head", T_OBJECT_EX, offsetof(Outline, head), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot SLOTS[] = {
    {Py_tp_doc, (void *)PyDoc_STR("Cut heads in which the length varies, and at most a key besides.")},
    {Py_tp_new, (void *)new_outline},
    {Py_tp_dealloc, (void *)free_outline},
    {Py_tp_traverse, (void *)visit_outline},
    {Py_tp_clear, (void *)clear_outline},
    {Py_tp_methods, METHODS},
    {Py_tp_members, MEMBERS},
    {0, NULL},
};

static PyType_Spec SPEC = {
    .name = "arcpipe_native._kernel.Outline",
    .basicsize = sizeof(Outline),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = SLOTS,
};

int add_outline(PyObject *module)
{
    prepare_signs();
    return add_type(module, &SPEC);
}
