#define PY_SSIZE_T_CLEAN

#include "row_reader.h"

#include "objects.h"
#include "rows.h"

/* Bytes of rows that are read in a call, and of the last row beyond: some 0.1 ms, in which no other thread runs. */
#define MOST_BYTES ((size_t)128 * 1024)

/* Make the map of a shape, and what Python is told of it; NULL with an exception set. */
static PyObject *shape_of(const Rows *rows, const RowShape *shape)
{
    PyObject *map = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)row_map_bytes(rows, shape));
    if (map == NULL)
        return NULL;
    RowTimes times;
    put_row_map(rows, shape, (uint8_t *)PyBytes_AsString(map), &times);
    PyObject *found = Py_BuildValue("Onnnn", map, (Py_ssize_t)shape->rows, (Py_ssize_t)times.start, (Py_ssize_t)times.end,
                                    (Py_ssize_t)times.width);
    Py_DECREF(map);
    return found;
}

/* Make what `gather_rows` returns; NULL with an exception set. */
static PyObject *shapes_of(const Rows *rows, size_t end)
{
    PyObject *shapes = PyTuple_New((Py_ssize_t)rows->shape_count);
    for (uint32_t number = 0; shapes != NULL && number < rows->shape_count; number++) {
        PyObject *shape = shape_of(rows, rows->shapes[number]);
        if (shape == NULL || PyTuple_SetItem(shapes, (Py_ssize_t)number, shape) < 0)
            Py_CLEAR(shapes);
    }
    if (shapes == NULL)
        return NULL;
    PyObject *found = Py_BuildValue("nnO", (Py_ssize_t)rows->row_count, (Py_ssize_t)end, shapes);
    Py_DECREF(shapes);
    return found;
}

static PyObject *gather(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    long long start, most;
    if (count != 3 || !PyBytes_Check(args[0]) || !read_integer(args[1], 0, PyBytes_Size(args[0]), &start) ||
        !read_integer(args[2], 1, INT64_MAX, &most)) {
        PyErr_SetString(PyExc_TypeError, "gather_rows takes bytes, an offset in them, and a number of rows");
        return NULL;
    }
    size_t left = (size_t)(PyBytes_Size(args[0]) - start);
    Rows rows;
    begin_rows(&rows, bytes_of(args[0]) + start);
    size_t end = gather_rows(&rows, MOST_BYTES, left < 2 * MOST_BYTES ? left : 2 * MOST_BYTES, (size_t)most);
    PyObject *found = end ? shapes_of(&rows, (size_t)start + end) : rows.no_memory ? PyErr_NoMemory() : Py_NewRef(Py_None);
    free_rows(&rows);
    return found;
}

static PyMethodDef FUNCTIONS[] = {
    {"gather_rows", (PyCFunction)(void (*)(void))gather, METH_FASTCALL, PyDoc_STR("Gather rows by shape.")},
    {NULL, NULL, 0, NULL},
};

int add_row_reader(PyObject *module)
{
    return PyModule_AddFunctions(module, FUNCTIONS);
}
