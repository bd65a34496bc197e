/* `read_column`, as Python sees it. */
#ifndef ARCPIPE_COLUMN_READER_H
#define ARCPIPE_COLUMN_READER_H

#include <Python.h>

int add_column_reader(PyObject *module);

#endif
