#define PY_SSIZE_T_CLEAN

#include "layout_reader.h"

#include <stdlib.h>
#include <string.h>

#include "layout.h"
#include "objects.h"
#include "packing.h"

/* Bytes of a payload from which on other threads run while its columns are found. */
#define LONG_PAYLOAD ((Py_ssize_t)1024 * 1024)

/* Tell how many bytes the headers of arrays have: all the shortest ones, of one width. 0 if they are not so. */
static PyObject *array_headers(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *arrays, *counts;
    Py_buffer numbers, array;
    if (!PyArg_ParseTuple(args, "O!O:array_headers", &PyTuple_Type, &arrays, &counts) ||
        PyObject_GetBuffer(counts, &numbers, PyBUF_SIMPLE) < 0)
        return NULL;
    Py_ssize_t size = PyTuple_Size(arrays);
    size_t width = 0;
    bool is_right = size > 0 && numbers.len == size * (Py_ssize_t)sizeof(uint32_t), failed = false;
    for (Py_ssize_t at = 0; is_right && at < size; at++) {
        if (PyObject_GetBuffer(PyTuple_GetItem(arrays, at), &array, PyBUF_SIMPLE) < 0) {
            failed = true;
            break;
        }
        size_t count = 0, header = read_array_header(array.buf, (size_t)array.len, &count);
        width = at ? width : header;
        is_right = header && header == width && header == count_bytes(count) &&
                   count == ((const uint32_t *)numbers.buf)[at];
        PyBuffer_Release(&array);
    }
    PyBuffer_Release(&numbers);
    return failed ? NULL : PyLong_FromSize_t(is_right ? width : 0);
}

/* Find the columns of a payload between literals: (rows, places), or None if they are not so. */
static PyObject *columns_of(const Py_buffer *payload, PyObject *texts)
{
    size_t number = (size_t)PyTuple_Size(texts) - 1, rows;
    Literal *literals = malloc((number + 1) * sizeof(Literal));
    PyObject *places = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(number * sizeof(Span)));
    PyObject *found = NULL;
    if (literals == NULL || places == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    for (size_t at = 0; at <= number; at++) {
        PyObject *text = PyTuple_GetItem(texts, (Py_ssize_t)at);
        if (!PyBytes_Check(text)) {
            PyErr_SetString(PyExc_TypeError, "literals are bytes");
            goto done;
        }
        literals[at] = (Literal){(const uint8_t *)PyBytes_AsString(text), (size_t)PyBytes_Size(text)};
    }
    const uint8_t *data = payload->buf;
    size_t size = (size_t)payload->len;
    Span *spans = (Span *)PyBytes_AsString(places);
    bool has;
    if (payload->len < LONG_PAYLOAD) {
        has = find_arrays(data, size, literals, spans, number, &rows);
    } else {
        Py_BEGIN_ALLOW_THREADS
        has = find_arrays(data, size, literals, spans, number, &rows);
        Py_END_ALLOW_THREADS
    }
    found = has ? Py_BuildValue("nO", (Py_ssize_t)rows, places) : Py_NewRef(Py_None);
done:
    free(literals);
    Py_XDECREF(places);
    return found;
}

static PyObject *find_columns(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *bytes, *texts;
    Py_buffer payload;
    if (!PyArg_ParseTuple(args, "OO!:find_columns", &bytes, &PyTuple_Type, &texts))
        return NULL;
    if (PyTuple_Size(texts) < 2) {
        PyErr_SetString(PyExc_ValueError, "there is a literal before each column, and one after the last");
        return NULL;
    }
    if (PyObject_GetBuffer(bytes, &payload, PyBUF_SIMPLE) < 0)
        return NULL;
    PyObject *found = columns_of(&payload, texts);
    PyBuffer_Release(&payload);
    return found;
}

/* Columns of a map that are found by their names, at most. */
#define MOST_NAMED 256

/* Bytes of columns that are walked while no other thread runs, and in a call, at most: a millisecond. */
#define SHORT_WALK ((size_t)128 * 1024)
#define MOST_WALKED ((size_t)1024 * 1024)

/* Make the tuple that `walk_columns` returns; NULL with an exception set. */
static PyObject *named_columns(const uint8_t *data, const Named *columns, size_t number, size_t rows, size_t end)
{
    PyObject *names = PyTuple_New((Py_ssize_t)number);
    Span times = {0, 0};
    size_t width = 0;
    for (size_t each = 0; names != NULL && each < number; each++) {
        Literal text = columns[each].name;
        PyObject *name = PyBytes_FromStringAndSize((const char *)text.text, (Py_ssize_t)text.size);
        if (name == NULL || PyTuple_SetItem(names, (Py_ssize_t)each, name) < 0)
            Py_CLEAR(names);
        if (text.size == 4 && !memcmp(text.text, "time", 4)) {
            times = columns[each].values;
            width = width_of(data, times, rows);
        }
    }
    if (names == NULL)
        return NULL;
    return Py_BuildValue("Nnnnnn", names, (Py_ssize_t)rows, (Py_ssize_t)end, (Py_ssize_t)times.start,
                         (Py_ssize_t)times.end, (Py_ssize_t)width);
}

static PyObject *walk_columns(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    long long start, number;
    if (count != 3 || !PyBytes_Check(args[0]) || !read_integer(args[1], 0, PyBytes_Size(args[0]), &start) ||
        !read_integer(args[2], 1, INT64_MAX, &number)) {
        PyErr_SetString(PyExc_TypeError, "walk_columns takes bytes, an offset in them, and a number of columns");
        return NULL;
    }
    if (number > MOST_NAMED)
        Py_RETURN_NONE;
    const uint8_t *data = bytes_of(args[0]);
    size_t size = (size_t)PyBytes_Size(args[0]), at = (size_t)start, left = size - at, rows = 0;
    Named columns[MOST_NAMED];
    size_t end = find_named(data, left > SHORT_WALK ? at + SHORT_WALK : size, at, columns, (size_t)number, &rows);
    if (!end && left > SHORT_WALK) {
        Py_BEGIN_ALLOW_THREADS
        end = find_named(data, left > MOST_WALKED ? at + MOST_WALKED : size, at, columns, (size_t)number, &rows);
        Py_END_ALLOW_THREADS
    }
    if (!end)
        Py_RETURN_NONE;
    return named_columns(data, columns, (size_t)number, rows, end);
}

static PyMethodDef FUNCTIONS[] = {
    {"array_headers", array_headers, METH_VARARGS, PyDoc_STR("Tell how many bytes the headers of arrays have.")},
    {"find_columns", find_columns, METH_VARARGS, PyDoc_STR("Find the columns of a payload between literals.")},
    {"walk_columns", (PyCFunction)(void (*)(void))walk_columns, METH_FASTCALL,
     PyDoc_STR("Find the columns of a map.")},
    {NULL, NULL, 0, NULL},
};

int add_layout_reader(PyObject *module)
{
    return PyModule_AddFunctions(module, FUNCTIONS);
}
