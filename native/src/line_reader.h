/* `LineReader`, as Python sees the lines of a body. `_kernel.pyi` has its use. */
#ifndef ARCPIPE_LINE_READER_H
#define ARCPIPE_LINE_READER_H

#include <Python.h>

/* Add the type to a module; 0, or -1 with an exception set. */
int add_line_reader(PyObject *module);

#endif
