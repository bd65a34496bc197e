/* Small things for types of Python. */
#ifndef ARCPIPE_OBJECTS_H
#define ARCPIPE_OBJECTS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdbool.h>
#include <stdint.h>

/* Put an object that the caller owns, or NULL, into a place, and give back what was there. */
static inline void put_object(PyObject **place, PyObject *object)
{
    PyObject *former = *place;
    *place = object;
    Py_XDECREF(former);
}

/* Give back the memory of an object whose own objects are given back already. */
static inline void free_object(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(object);
    Py_DECREF(type);
}

static inline const uint8_t *bytes_of(PyObject *bytes)
{
    return (const uint8_t *)PyBytes_AsString(bytes);
}

/* The bytes of an object, as long as that is there. */
typedef struct {
    const uint8_t *data;
    Py_ssize_t size;
} Bytes;

/* Read an object that must be bytes; false with an exception set. */
static inline bool read_bytes(PyObject *object, Bytes *bytes)
{
    char *data;
    if (PyBytes_AsStringAndSize(object, &data, &bytes->size) < 0)
        return false;
    bytes->data = (const uint8_t *)data;
    return true;
}

/* Read an integer of Python that is in a range; false, without an exception, for all else. */
static inline bool read_integer(PyObject *object, long long low, long long high, long long *value)
{
    if (object == NULL || !PyLong_CheckExact(object))
        return false;
    int overflow;
    *value = PyLong_AsLongLongAndOverflow(object, &overflow);
    return overflow == 0 && *value >= low && *value <= high;
}

/* Make a type of a module; 0, or -1 with an exception set. */
static inline int add_type(PyObject *module, PyType_Spec *spec)
{
    PyObject *type = PyType_FromModuleAndSpec(module, spec, NULL);
    int done = type == NULL ? -1 : PyModule_AddType(module, (PyTypeObject *)type);
    Py_XDECREF(type);
    return done;
}

#endif
