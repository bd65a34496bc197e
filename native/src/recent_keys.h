/* `RecentKeys`, as Python sees the keys that a worker has claimed. `_kernel.pyi` has its use. */
#ifndef ARCPIPE_RECENT_KEYS_H
#define ARCPIPE_RECENT_KEYS_H

#include <Python.h>

/* Add the type to a module; 0, or -1 with an exception set. */
int add_recent_keys(PyObject *module);

#endif
