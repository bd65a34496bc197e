/* `Outline`, as Python sees a known request head. `_kernel.pyi` has its use. */
#ifndef ARCPIPE_OUTLINE_H
#define ARCPIPE_OUTLINE_H

#include <Python.h>

/* Add the type to a module; 0, or -1 with an exception set. */
int add_outline(PyObject *module);

#endif
