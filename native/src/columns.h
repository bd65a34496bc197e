/* The values of a column in MessagePack, from all entries of a table -> the buffers of an Arrow array, in one pass.
 *
 * It takes what is plain: numbers that are all floats or all integers below 2^63, and texts; nil among them. It never
 * says what is wrong with a column: one that it does not take is left to Python, which knows.
 */
#ifndef ARCPIPE_COLUMNS_H
#define ARCPIPE_COLUMNS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "dictionary.h"

/* Some values of a column that follow one another. */
typedef struct {
    const uint8_t *data;
    size_t size;
    size_t count; /* of values */
} Part;

typedef struct {
    const Part *parts;
    size_t number; /* of parts */
    size_t count;  /* of all values */
    size_t bytes;  /* of all values */
} Column;

typedef enum { LEFT, FLOATS, INTEGERS, TEXTS, DICTIONARY } Kind;

/* The values that are nil. `valid` is NULL until there is one, then a bit for each value. */
typedef struct {
    uint8_t *valid;
    size_t nils;
} Nils;

typedef struct {
    int64_t least, greatest;
} Range;

/* Tell whether many parts may be alike, by their sizes and their bytes at both ends. True if there is no memory. */
bool may_repeat(const Column *column);

/* Tell which kind the first value that is not nil has; LEFT if it is none that is taken. */
Kind kind_of(const Column *column);

/* Read integers. LEFT, or FLOATS if there is a float among them. */
Kind read_integers(const Column *column, int64_t *values, Nils *nils, Range *range);

/* Read floats, and integers as floats where these are exact. `settles` tells whether one of them is not NaN. */
Kind read_floats(const Column *column, double *values, Nils *nils, bool *settles);

/* The bounds of dictionaries, and of a search for parts that are alike. Python has them, too, and chooses as we do. */
typedef struct {
    size_t least_values; /* of a column that gets one */
    size_t sample;       /* values tried at the front and in the middle: if half of them differ, there is none */
    size_t most_words;
    size_t most_bytes; /* of the words, encoded, with four bytes for each */
    size_t least_parts; /* from which on parts of so many values are compared with one another */
    size_t part_values;
} Bounds;

/* Read texts as numbers of words: DICTIONARY, or TEXTS if there must be no dictionary, or LEFT. */
Kind read_dictionary(const Column *column, const Bounds *bounds, int32_t *numbers, Nils *nils, Dictionary *dictionary);

/* Find texts: `offsets` gets one more than there are values. */
Kind find_texts(const Column *column, int32_t *offsets, Nils *nils);

/* Copy the texts that were found. LEFT if some are no UTF-8. */
Kind copy_texts(const Column *column, const int32_t *offsets, uint8_t *to);

#endif
