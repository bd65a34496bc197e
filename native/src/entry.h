/* `join_entry`: an entry of the WAL, in one piece. */
#ifndef ARCPIPE_ENTRY_H
#define ARCPIPE_ENTRY_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* Add the function to the module; 0, or -1 with an exception set. */
int add_entry(PyObject *module);

#endif
