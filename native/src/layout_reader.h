/* `find_columns` and `array_headers`, as Python sees them. */
#ifndef ARCPIPE_LAYOUT_READER_H
#define ARCPIPE_LAYOUT_READER_H

#include <Python.h>

int add_layout_reader(PyObject *module);

#endif
