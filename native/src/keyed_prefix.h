/* `KeyedPrefix`, as Python sees the bytes before the body of an entry with a key. `_kernel.pyi` has its use. */
#ifndef ARCPIPE_KEYED_PREFIX_H
#define ARCPIPE_KEYED_PREFIX_H

#include <Python.h>

/* Add the type to a module; 0, or -1 with an exception set. */
int add_keyed_prefix(PyObject *module);

#endif
