#define PY_SSIZE_T_CLEAN

#include "column_reader.h"

#include <stdlib.h>
#include <string.h>

#include "columns.h"
#include "layout.h"

/* Bytes of a column from which on other threads run meanwhile: a shorter one takes less than they would wait. */
#define LONG_BYTES ((size_t)16 * 1024)
/* Bytes of a column that is left: an Arrow array of texts has offsets of 31 bits. */
#define MOST_BYTES ((size_t)INT32_MAX)
/* Bytes of an average text above which a column is left: it is copied anyway, and Python copies it fewer times. */
#define LONG_TEXT ((size_t)4096)

/* The buffers of a column's parts, which are held until all is read. */
typedef struct {
    Column column;
    Py_buffer *buffers;
    Part *parts;
    size_t held; /* buffers */
} Source;

static void release_source(Source *source)
{
    while (source->held)
        PyBuffer_Release(&source->buffers[--source->held]);
    free(source->buffers);
    free(source->parts);
}

/* A piece of a column, as Python gives it. */
typedef struct {
    PyObject *buffers; /* a tuple */
    PyObject *places;  /* a tuple of bytes, or None */
    Py_ssize_t column; /* the number of the column among the places; below 0 for values without a header */
    PyObject *counts;
} Piece;

static bool parse_piece(PyObject *object, Piece *piece)
{
    if (!PyArg_ParseTuple(object, "O!OnO:piece", &PyTuple_Type, &piece->buffers, &piece->places, &piece->column,
                          &piece->counts))
        return false;
    PyObject *places = piece->places;
    if (places == Py_None ||
        (piece->column >= 0 && PyTuple_Check(places) && PyTuple_Size(places) == PyTuple_Size(piece->buffers)))
        return true;
    PyErr_SetString(PyExc_ValueError, "a piece needs places for each of its buffers, or None");
    return false;
}

/* Cut the values of a part out of its buffer. False if they are not where they should be. */
static bool cut_part(const Piece *piece, Py_ssize_t number, const Py_buffer *buffer, Part *part)
{
    part->data = buffer->buf;
    part->size = (size_t)buffer->len;
    if (piece->places != Py_None) {
        PyObject *places = PyTuple_GetItem(piece->places, number);
        uint64_t place[2];
        if (!PyBytes_Check(places) || PyBytes_Size(places) / (Py_ssize_t)sizeof place <= piece->column)
            return false;
        memcpy(place, PyBytes_AsString(places) + piece->column * (Py_ssize_t)sizeof place, sizeof place);
        if (place[0] > place[1] || place[1] > part->size)
            return false;
        part->data += place[0];
        part->size = place[1] - place[0];
    }
    if (piece->column < 0)
        return true;
    size_t count, header = read_array_header(part->data, part->size, &count);
    part->data += header;
    part->size -= header;
    return header && count == part->count;
}

/* Hold the parts of a piece. */
static bool hold_piece(Source *source, const Piece *piece)
{
    Py_buffer numbers;
    if (PyObject_GetBuffer(piece->counts, &numbers, PyBUF_SIMPLE) < 0)
        return false;
    Py_ssize_t size = PyTuple_Size(piece->buffers);
    bool is_right = numbers.len == size * (Py_ssize_t)sizeof(uint32_t);
    for (Py_ssize_t at = 0; is_right && at < size; at++) {
        Py_buffer *buffer = &source->buffers[source->held];
        if (PyObject_GetBuffer(PyTuple_GetItem(piece->buffers, at), buffer, PyBUF_SIMPLE) < 0) {
            PyBuffer_Release(&numbers);
            return false;
        }
        Part *part = &source->parts[source->held++];
        part->count = ((const uint32_t *)numbers.buf)[at];
        is_right = cut_part(piece, at, buffer, part);
        source->column.bytes += part->size;
        source->column.count += part->count;
    }
    PyBuffer_Release(&numbers);
    if (!is_right)
        PyErr_SetString(PyExc_ValueError, "a piece has other values than it says");
    return is_right;
}

/* Hold all pieces. */
static bool hold(Source *source, PyObject *pieces)
{
    Piece piece;
    Py_ssize_t total = 0, number = PyTuple_Size(pieces);
    for (Py_ssize_t at = 0; at < number; at++) {
        if (!parse_piece(PyTuple_GetItem(pieces, at), &piece))
            return false;
        total += PyTuple_Size(piece.buffers);
    }
    source->buffers = malloc((size_t)(total ? total : 1) * sizeof(Py_buffer));
    source->parts = malloc((size_t)(total ? total : 1) * sizeof(Part));
    if (source->buffers == NULL || source->parts == NULL) {
        PyErr_NoMemory();
        return false;
    }
    for (Py_ssize_t at = 0; at < number; at++)
        if (!parse_piece(PyTuple_GetItem(pieces, at), &piece) || !hold_piece(source, &piece))
            return false;
    source->column.parts = source->parts;
    source->column.number = source->held;
    return true;
}

/* What a column is read into. */
typedef struct {
    Kind kind;
    bool is_repeated; /* many parts may be alike, and none was read */
    PyObject *values; /* numbers, or the offsets of texts, or the numbers of words */
    Nils nils;
    Range range;   /* of integers */
    bool settles;  /* of floats */
    PyObject *data; /* of texts */
    Dictionary dictionary;
} Result;

static void clear_nils(Nils *nils)
{
    free(nils->valid);
    *nils = (Nils){0};
}

/* Read numbers of the wanted kind; without one, of the kind that they have. */
static Kind read_numbers(const Column *column, Kind wanted, Kind kind, Result *result, void *values)
{
    if (wanted != FLOATS && kind == INTEGERS) {
        kind = read_integers(column, values, &result->nils, &result->range);
        if (kind != FLOATS)
            return kind;
        clear_nils(&result->nils);
    }
    return wanted == INTEGERS ? LEFT : read_floats(column, values, &result->nils, &result->settles);
}

/* Read texts up to their bytes, if they are no words of a dictionary. */
static Kind read_texts(const Column *column, const Bounds *bounds, Result *result, int32_t *values)
{
    if (!dictionary_begin(&result->dictionary))
        return LEFT;
    Kind kind = read_dictionary(column, bounds, values, &result->nils, &result->dictionary);
    if (kind != TEXTS)
        return kind;
    clear_nils(&result->nils);
    return find_texts(column, values, &result->nils);
}

static Kind read_values(const Column *column, const Bounds *bounds, Kind wanted, Kind kind, Result *result)
{
    void *values = PyBytes_AsString(result->values);
    return kind == TEXTS ? read_texts(column, bounds, result, values)
                         : read_numbers(column, wanted, kind, result, values);
}

/* Tell whether a column of texts may have many parts that are alike, of which Python takes care. */
static bool is_repeated(const Column *column, const Bounds *bounds)
{
    return column->number >= bounds->least_parts && column->count >= column->number * bounds->part_values &&
           may_repeat(column);
}

/* Read a column into buffers. False, with an exception set, if there is no memory for these. */
static bool read_into(const Column *column, const Bounds *bounds, Kind wanted, Result *result)
{
    Kind kind = column->bytes < MOST_BYTES ? kind_of(column) : LEFT;
    bool is_text = kind == TEXTS, is_long = column->bytes >= LONG_BYTES;
    if (kind == LEFT || (wanted != LEFT && is_text != (wanted == TEXTS)) ||
        (is_text && column->bytes / LONG_TEXT > column->count))
        return true;
    if (is_text && is_repeated(column, bounds)) {
        result->is_repeated = true;
        return true;
    }
    size_t size = is_text ? (column->count + 1) * sizeof(int32_t) : column->count * sizeof(double);
    result->values = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
    if (result->values == NULL)
        return false;
    if (is_long) {
        Py_BEGIN_ALLOW_THREADS
        kind = read_values(column, bounds, wanted, kind, result);
        Py_END_ALLOW_THREADS
    } else {
        kind = read_values(column, bounds, wanted, kind, result);
    }
    if (kind == TEXTS) {
        const int32_t *offsets = (const int32_t *)PyBytes_AsString(result->values);
        result->data = PyBytes_FromStringAndSize(NULL, offsets[column->count]);
        if (result->data == NULL)
            return false;
        uint8_t *to = (uint8_t *)PyBytes_AsString(result->data);
        if (is_long) {
            Py_BEGIN_ALLOW_THREADS
            kind = copy_texts(column, offsets, to);
            Py_END_ALLOW_THREADS
        } else {
            kind = copy_texts(column, offsets, to);
        }
    }
    result->kind = kind;
    return true;
}

/* Make the words of a dictionary one text: (their number, offsets, text). */
static PyObject *words_of(const Dictionary *dictionary)
{
    size_t size = ((size_t)dictionary->count + 1) * sizeof(int32_t);
    PyObject *offsets = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
    PyObject *data = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)dictionary->text_bytes);
    if (offsets == NULL || data == NULL) {
        Py_XDECREF(offsets);
        Py_XDECREF(data);
        return NULL;
    }
    int32_t *places = (int32_t *)PyBytes_AsString(offsets);
    char *text = PyBytes_AsString(data);
    int32_t at = 0;
    for (uint32_t number = 0; number < dictionary->count; number++) {
        places[number] = at;
        const Word *word = &dictionary->words[number + 1];
        memcpy(text + at, word->text, word->size);
        at += (int32_t)word->size;
    }
    places[dictionary->count] = at;
    return Py_BuildValue("INN", (unsigned int)dictionary->count, offsets, data);
}

/* Return what was read as (kind, values, valid, nils, what else there is of the kind); None if it is left, and an empty
 * tuple if many parts may be alike. */
static PyObject *tuple_of(Result *result, size_t count)
{
    if (result->kind == LEFT)
        return result->is_repeated ? PyTuple_New(0) : Py_NewRef(Py_None);
    PyObject *more;
    if (result->kind == FLOATS) {
        more = PyBool_FromLong(result->settles);
    } else if (result->kind == INTEGERS) {
        more = Py_BuildValue("LL", (long long)result->range.least, (long long)result->range.greatest);
    } else if (result->kind == TEXTS) {
        more = Py_NewRef(result->data);
    } else {
        more = words_of(&result->dictionary);
    }
    if (more == NULL)
        return NULL;
    const Nils *nils = &result->nils;
    Py_ssize_t size = nils->valid == NULL ? 0 : (Py_ssize_t)((count + 7) / 8);
    return Py_BuildValue("iOy#nN", (int)result->kind, result->values, (const char *)nils->valid, size,
                         (Py_ssize_t)nils->nils, more);
}

static PyObject *read_column(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *pieces;
    int wanted;
    Py_ssize_t least_values, sample, most_words, most_bytes, least_parts, part_values;
    if (!PyArg_ParseTuple(args, "O!i(nnnnnn):read_column", &PyTuple_Type, &pieces, &wanted, &least_values, &sample,
                          &most_words, &most_bytes, &least_parts, &part_values))
        return NULL;
    Bounds bounds = {.least_values = (size_t)least_values,
                     .sample = (size_t)sample,
                     .most_words = (size_t)most_words,
                     .most_bytes = (size_t)most_bytes,
                     .least_parts = (size_t)least_parts,
                     .part_values = (size_t)part_values};
    Source source = {0};
    Result result = {.kind = LEFT};
    PyObject *found = NULL;
    if (hold(&source, pieces) && read_into(&source.column, &bounds, (Kind)wanted, &result))
        found = tuple_of(&result, source.column.count);
    release_source(&source);
    clear_nils(&result.nils);
    dictionary_free(&result.dictionary);
    Py_XDECREF(result.values);
    Py_XDECREF(result.data);
    return found;
}

static PyMethodDef FUNCTIONS[] = {
    {"read_column", read_column, METH_VARARGS, PyDoc_STR("Read the values of a column into the buffers of an array.")},
    {NULL, NULL, 0, NULL},
};

int add_column_reader(PyObject *module)
{
    PyObject *text = PyUnicode_FromString("arcpipe_native columns");
    Py_hash_t hash = text != NULL ? PyObject_Hash(text) : -1;
    Py_XDECREF(text);
    if (text == NULL)
        return -1;
    dictionary_seed((uint64_t)hash);
    return PyModule_AddFunctions(module, FUNCTIONS);
}
