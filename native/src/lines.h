/* Lines of line protocol, their shapes, and the columnar maps that they become.
 *
 * `Lines` reads the plain lines of a body and keeps their values by shape, until `pack_maps` makes maps of them. It never
 * says what is wrong with a line: one that it does not take is left to Python, which knows.
 *
 * Everything points into the body, which must stay as it is.
 */
#ifndef ARCPIPE_LINES_H
#define ARCPIPE_LINES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "arena.h"
#include "hashes.h"
#include "numbers.h"

/* Bytes of a line that is taken: less than 2^16, so that a text's size has 16 bits. */
#define MOST_LINE_BYTES 65535
/* Shapes that are kept at a time; as many as Python's reader keeps. */
#define MOST_SHAPES 4096
/* What may take long in one call of `read_lines`: numbers that take the slow way, or keys of new shapes. Some 2 ms. */
#define MOST_SLOW 2048

/* A text as a cell: its offset in the body, whether it has escapes, and its size. */
#define TEXT_CELL(offset, escaped, size) ((uint64_t)(offset) << 17 | (uint64_t)(escaped) << 16 | (uint64_t)(size))
#define TEXT_OFFSET(cell) ((size_t)((cell) >> 17))
#define TEXT_ESCAPED(cell) ((cell) >> 16 & 1)
#define TEXT_SIZE(cell) ((size_t)((cell)&0xFFFF))

typedef struct {
    const uint8_t *text;
    uint32_t size;
    uint8_t type; /* of the value after it */
    bool escaped;
} Key;

/* The name of a column, without escapes. */
typedef struct {
    const uint8_t *text;
    uint32_t size;
    bool clashes; /* a field that is called as a tag, or as the time */
} Name;

/* The values of a line: the time, if it has one, then tags, then fields. A number is its bits, a boolean 0 or 1. */
typedef struct Row {
    struct Row *next;
    uint64_t cells[];
} Row;

/* Lines with the same measurement and keys in the same order, the same types, and all with a time or without. */
typedef struct Shape {
    uint64_t hash;
    struct Shape *chained;  /* the next one in the same place of the table */
    struct Shape *newer;    /* the one that was found after this one */
    struct Shape *follower; /* the shape of the line after the latest line of this one */
    struct Shape *other;    /* what that was before it changed, or NULL */
    const Key *keys;        /* the measurement, tags, fields */
    Name *names;            /* of these */
    uint32_t count;         /* tags and fields */
    uint32_t tags;
    bool timed;
    bool odd; /* its names are not plain: lines of it are left */
    Row *first, *last;
    size_t rows;
    size_t text_bytes; /* of all values, with escapes */
} Shape;

typedef struct {
    const uint8_t *body;
    size_t size;
    bool pairs;        /* backslashes are read in pairs with what follows, as InfluxDB 3 does */
    int64_t low, high; /* the range of a time */

    /* Of the lines since the last `clear_lines`. */
    Arena arena;
    Shape **table;
    size_t places; /* of the table, a power of two; 0 until there is one */
    Shape *oldest, *newest;
    size_t shapes, odd_shapes, maps, records;
    Shape *latest; /* the shape of the latest line */
    bool no_memory;
    bool is_left; /* the line where `read_lines` has stopped is left */
    bool is_full; /* it has a shape more than MOST_SHAPES */
    size_t slow;  /* what took long in this call of `read_lines`, see MOST_SLOW */
    size_t known; /* the offset up to which lines are known to be UTF-8 */

    /* Of the line that is read. */
    Key *keys;
    uint64_t *cells;
    uint32_t room; /* of both */
} Lines;

/* What a line is made of, in `keys` and `cells` of `Lines`. */
typedef struct {
    uint32_t count, tags; /* as in Shape */
    bool timed;
    size_t text_bytes;
} Line;

/* Read the line at `at`, which is no blank and no comment. Return the offset after it, or 0 if it is left. It may be no
 * UTF-8. */
size_t read_line(Lines *lines, size_t at, Line *line);

/* Do the same for a line of this shape, whose values go to a row. Return 0 if it is of another one, too. */
size_t read_alike(Lines *lines, size_t at, const Shape *shape, Row *row, size_t *text_bytes);

/* Make room for the keys and values of longer lines; false if there is no memory. */
bool make_room(Lines *lines);

/* Find or make the shape of a line; NULL if there is no memory, the table cannot take it, or it is full. */
Shape *find_shape(Lines *lines, const Line *line);

/* Read the lines that begin from `at` on and before `stop`. Return the offset after the last of them: below `stop`, if the
 * line there is left, or has a shape too many, or there are MOST_SLOW, or there is no memory. */
size_t read_lines(Lines *lines, size_t at, size_t stop);

/* Count the bytes that `pack_maps` needs at most. */
size_t most_map_bytes(const Lines *lines);

/* Write the maps of all lines, as an array if `alone` and there are several; return the bytes. */
size_t pack_maps(const Lines *lines, bool alone, uint8_t *to);

/* Forget the lines. */
void clear_lines(Lines *lines);

void free_lines(Lines *lines);

#endif
