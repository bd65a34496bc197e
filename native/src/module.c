/* The module `arcpipe_native._kernel`. A part adds its types and functions in a slot of its own below. */
#include <Python.h>

#include "column_reader.h"
#include "entry.h"
#include "key_records.h"
#include "layout_reader.h"
#include "line_reader.h"
#include "outline.h"
#include "recent_keys.h"
#include "row_reader.h"

#ifndef ARCPIPE_VERSION
#error "ARCPIPE_VERSION is the version of the package, as a text"
#endif

static int add_version(PyObject *module)
{
    return PyModule_AddStringConstant(module, "version", ARCPIPE_VERSION);
}

static PyModuleDef_Slot SLOTS[] = {
    {Py_mod_exec, (void *)add_version},
    {Py_mod_exec, (void *)add_line_reader},
    {Py_mod_exec, (void *)add_outline},
    {Py_mod_exec, (void *)add_recent_keys},
    {Py_mod_exec, (void *)add_entry},
    {Py_mod_exec, (void *)add_column_reader},
    {Py_mod_exec, (void *)add_layout_reader},
    {Py_mod_exec, (void *)add_key_records},
    {Py_mod_exec, (void *)add_row_reader},
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
    {0, NULL},
};

static struct PyModuleDef MODULE = {
    PyModuleDef_HEAD_INIT,
    .m_name = "arcpipe_native._kernel",
    .m_doc = PyDoc_STR("Parts of arcpipe in C."),
    .m_slots = SLOTS,
};

PyMODINIT_FUNC PyInit__kernel(void)
{
    return PyModuleDef_Init(&MODULE);
}
