/* `key_records`, as Python sees it: what the uploader keeps of idempotency keys. */
#ifndef ARCPIPE_KEY_RECORDS_H
#define ARCPIPE_KEY_RECORDS_H

#include <Python.h>

int add_key_records(PyObject *module);

#endif
