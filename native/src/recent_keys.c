#include "recent_keys.h"

#include <stddef.h>
#include <structmember.h>

#include "checksum.h"
#include "claims.h"
#include "objects.h"

/* Bytes of a body whose checksum is made here, at most: that of Python is faster for longer ones. */
#define SHORT_BODY_BYTES 512
/* Bytes of a key, and of what it belongs to, at most. */
#define MOST_BYTES ((Py_ssize_t)1 << 30)
/* Odd, so that one part of a hash does not undo the other. */
#define MULTIPLIER UINT32_C(0x9E3779B1)

typedef struct {
    PyObject_HEAD
    PyObject *crc32;   /* of bytes, and of those before them, in Python */
    long long claimed; /* the number of the last claim */
    long long settled; /* the number of the last claim that is on disk or forgotten, as all before it are */
    long long forgotten;
    long long half_limit, full_at; /* the number of the last claim that the young generation has room for */
    double half_seconds, began, old_began, turns_at;
    Claims claims;
    size_t old; /* the number of those of the old generation, which are the first ones */
} RecentKeys;

static PyObject *new_keys(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    double window_seconds;
    long long limit;
    PyObject *crc32;
    if (keywords != NULL && PyDict_Size(keywords) != 0) {
        PyErr_SetString(PyExc_TypeError, "RecentKeys takes no keyword arguments");
        return NULL;
    }
    if (!PyArg_ParseTuple(args, "dLO:RecentKeys", &window_seconds, &limit, &crc32))
        return NULL;
    if (limit / 2 > (long long)MOST_CLAIMS) {
        PyErr_SetString(PyExc_ValueError, "the limit is above 2 ** 31");
        return NULL;
    }
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    RecentKeys *self = (RecentKeys *)allocate(type, 0);
    if (self == NULL)
        return NULL;
    Py_INCREF(crc32);
    self->crc32 = crc32;
    self->half_seconds = window_seconds / 2;
    self->half_limit = limit < 2 ? 1 : limit / 2;
    return (PyObject *)self;
}

static void free_keys(PyObject *object)
{
    RecentKeys *self = (RecentKeys *)object;
    free_claims(&self->claims);
    put_object(&self->crc32, NULL);
    free_object(object);
}

/* Begin a generation if the young one is full or too old, and drop the old one if it is: as `_turn` in Python. */
static void turn(RecentKeys *self, double now)
{
    if (self->claimed >= self->full_at || now - self->began >= self->half_seconds) {
        drop_claims(&self->claims, self->old);
        self->old = self->claims.used;
        self->old_began = self->began;
        self->began = now;
        self->full_at = self->claimed + self->half_limit;
    }
    if (now - self->old_began >= 2 * self->half_seconds) {
        drop_claims(&self->claims, self->old);
        self->old = 0;
    }
    self->turns_at = self->began + self->half_seconds;
    if (self->old != 0 && self->old_began + 2 * self->half_seconds < self->turns_at)
        self->turns_at = self->old_began + 2 * self->half_seconds;
}

/* Read what a key belongs to, and the key; false, with an exception set, if they are not. Valid as long as the objects. */
static bool read_identity(PyObject *owner_object, PyObject *key_object, Identity *identity)
{
    Bytes owner, key;
    if (!read_bytes(owner_object, &owner) || !read_bytes(key_object, &key))
        return false;
    if (owner.size > MOST_BYTES || key.size > MOST_BYTES) {
        PyErr_SetString(PyExc_OverflowError, "a key, and what it belongs to, are at most 1 GB each");
        return false;
    }
    Py_hash_t owner_hash = PyObject_Hash(owner_object), key_hash = PyObject_Hash(key_object);
    *identity = (Identity){
        .owner = owner.data,
        .key = key.data,
        .owner_bytes = (uint32_t)owner.size,
        .key_bytes = (uint32_t)key.size,
        .hash = (uint32_t)key_hash + MULTIPLIER * (uint32_t)owner_hash,
    };
    return owner_hash != -1 && key_hash != -1;
}

/* Have Python make the checksum of more bytes; false with an exception set. */
static bool add_by_python(const RecentKeys *self, PyObject *bytes, Claim *claim)
{
    Py_ssize_t size = PyObject_Size(bytes);
    PyObject *crc = size < 0 ? NULL : PyObject_CallFunction(self->crc32, "Ok", bytes, (unsigned long)claim->crc);
    long long value = 0;
    bool is_read = read_integer(crc, 0, UINT32_MAX, &value);
    if (crc != NULL && !is_read)
        PyErr_SetString(PyExc_TypeError, "crc32 must return an integer of 32 bits");
    Py_XDECREF(crc);
    claim->body_bytes += (uint64_t)size;
    claim->crc = (uint32_t)value;
    return is_read;
}

/* Measure a body, and the bytes before it; false with an exception set. */
static bool measure(const RecentKeys *self, PyObject *body, PyObject *front, Claim *claim)
{
    if (front != NULL && !(PyBytes_Check(front) && PyBytes_Size(front) == 0))
        return add_by_python(self, front, claim) && add_by_python(self, body, claim);
    Bytes bytes;
    if (!PyBytes_Check(body) || !read_bytes(body, &bytes) || bytes.size > SHORT_BODY_BYTES)
        return add_by_python(self, body, claim);
    claim->body_bytes = (uint64_t)bytes.size;
    claim->crc = add_to_crc32(0, bytes.data, (size_t)bytes.size);
    return true;
}

static PyObject *claim(PyObject *object, PyObject *const *args, Py_ssize_t count)
{
    RecentKeys *self = (RecentKeys *)object;
    if (count != 4 && count != 5) {
        PyErr_SetString(PyExc_TypeError, "claim takes 4 or 5 arguments");
        return NULL;
    }
    Identity identity;
    Claim claim = {0};
    double now = PyFloat_AsDouble(args[3]);
    if ((now == -1.0 && PyErr_Occurred()) || !read_identity(args[0], args[1], &identity) ||
        !measure(self, args[2], count == 5 ? args[4] : NULL, &claim))
        return NULL;
    claim.number = self->claimed + 1;
    if (now >= self->turns_at || claim.number > self->full_at)
        turn(self, now);
    size_t slot;
    const Claim *first = find_claim(&self->claims, identity, &slot);
    if (first != NULL && first->number <= self->settled) {
        Py_INCREF(Py_None);
        return Py_None;
    }
    PyObject *number = PyLong_FromLongLong(claim.number);
    if (number == NULL)
        return NULL;
    bool is_young = first != NULL && first >= self->claims.claims + self->old;
    if (!is_young && !add_claim(&self->claims, identity, slot, claim)) {
        Py_DECREF(number);
        return PyErr_NoMemory();
    }
    self->claimed = claim.number;
    return number;
}

static PyObject *earlier(PyObject *object, PyObject *const *args, Py_ssize_t count)
{
    Identity identity;
    size_t slot;
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "earlier takes 2 arguments");
        return NULL;
    }
    if (!read_identity(args[0], args[1], &identity))
        return NULL;
    const Claim *claim = find_claim(&((RecentKeys *)object)->claims, identity, &slot);
    if (claim == NULL) {
        PyErr_SetObject(PyExc_KeyError, args[1]);
        return NULL;
    }
    return Py_BuildValue("LKk", claim->number, (unsigned long long)claim->body_bytes, (unsigned long)claim->crc);
}

/* Note that the claims up to a number are settled: how many they are without those that were forgotten. */
static long long settle_to(RecentKeys *self, long long number)
{
    long long count = number - self->settled - self->forgotten;
    self->settled = number;
    self->forgotten = 0;
    return count;
}

static PyObject *settle(PyObject *object, PyObject *number)
{
    RecentKeys *self = (RecentKeys *)object;
    long long value;
    if (!read_integer(number, 0, self->claimed, &value)) {
        PyErr_SetString(PyExc_ValueError, "no claim has this number");
        return NULL;
    }
    return PyLong_FromLongLong(settle_to(self, value));
}

static PyObject *forget(PyObject *object, PyObject *numbers)
{
    RecentKeys *self = (RecentKeys *)object;
    if (!PyList_Check(numbers)) {
        PyErr_SetString(PyExc_TypeError, "forget takes a list of numbers");
        return NULL;
    }
    Py_ssize_t count = PyList_Size(numbers);
    for (Py_ssize_t at = 0; at < count; at++) {
        long long number;
        if (!read_integer(PyList_GetItem(numbers, at), 1, self->claimed, &number)) {
            PyErr_SetString(PyExc_ValueError, "no claim has this number");
            return NULL;
        }
        self->forgotten++;
        remove_claim(&self->claims, number);
    }
    if (count > 0 && self->settled + self->forgotten == self->claimed)
        settle_to(self, self->claimed);
    Py_INCREF(Py_None);
    return Py_None;
}

static PyMethodDef METHODS[] = {
    {"claim", (PyCFunction)(void (*)(void))claim, METH_FASTCALL,
     PyDoc_STR("Claim a key for a request that is to be written: the number, or None if an earlier one is on disk.")},
    {"earlier", (PyCFunction)(void (*)(void))earlier, METH_FASTCALL, PyDoc_STR("Return the claim of that request.")},
    {"settle", settle, METH_O, PyDoc_STR("Note that the claims up to a number are on disk; return how many they are.")},
    {"forget", forget, METH_O, PyDoc_STR("Forget claims whose requests were not written.")},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef MEMBERS[] = {
    {"claimed", T_LONGLONG, offsetof(RecentKeys, claimed), READONLY, PyDoc_STR("The number of the last claim.")},
    {"settled", T_LONGLONG, offsetof(RecentKeys, settled), READONLY,
     PyDoc_STR("The number of the last claim that is on disk or forgotten, as all before it are.")},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot SLOTS[] = {
    {Py_tp_doc, (void *)PyDoc_STR("The keys that one worker wrote last, in two generations.")},
    {Py_tp_new, (void *)new_keys},
    {Py_tp_dealloc, (void *)free_keys},
    {Py_tp_methods, METHODS},
    {Py_tp_members, MEMBERS},
    {0, NULL},
};

static PyType_Spec SPEC = {
    .name = "arcpipe_native._kernel.RecentKeys",
    .basicsize = sizeof(RecentKeys),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = SLOTS,
};

int add_recent_keys(PyObject *module)
{
    prepare_crc32();
    return add_type(module, &SPEC);
}
