/* The columns of a columnar map, found by the bytes around them. */
#ifndef ARCPIPE_LAYOUT_H
#define ARCPIPE_LAYOUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Tell whether an array begins with the shortest header for its number of values: its bytes, or 0. */
size_t read_array_header(const uint8_t *at, size_t left, size_t *count);

typedef struct {
    const uint8_t *text;
    size_t size;
} Literal;

typedef struct {
    uint64_t start, end; /* offsets */
} Span;

/* Find arrays of flat values, each with the same number of them, between literals: one more than there are arrays.
 * False if the bytes are anything else. */
bool find_arrays(const uint8_t *data, size_t size, const Literal *literals, Span *arrays, size_t number, size_t *rows);

typedef struct {
    Literal name;
    Span values; /* without the header of their array */
} Named;

/* Find the columns of a map whose first key is at `start`: short names of printable ASCII, and arrays of flat values, each
 * with the same number of them, at least one. Return the offset after the map; 0 if the bytes are anything else. */
size_t find_named(const uint8_t *data, size_t size, size_t start, Named *columns, size_t number, size_t *rows);

/* Return the size of each of these values if all have the same first byte, which tells their size; else 0. */
size_t width_of(const uint8_t *data, Span values, size_t count);

#endif
