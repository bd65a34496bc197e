/* `gather_rows`, as Python sees it: rows in MessagePack by shape. */
#ifndef ARCPIPE_ROW_READER_H
#define ARCPIPE_ROW_READER_H

#include <Python.h>

int add_row_reader(PyObject *module);

#endif
