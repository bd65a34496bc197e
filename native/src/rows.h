/* Rows in MessagePack -> columnar maps, one for each shape, as `codec.columns.ColumnBatch` writes them.
 *
 * It takes rows of flat values, under the keys m, t, h, tags and fields, whose names are short and printable ASCII. It
 * never says what is wrong with a row: if one is anything else, all are left to Python, which knows.
 */
#ifndef ARCPIPE_ROWS_H
#define ARCPIPE_ROWS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "arena.h"
#include "layout.h"

/* Values of a row, and shapes, at most. */
enum { MOST_VALUES = 256, MOST_ROW_SHAPES = 4096 };

#define NO_ROW UINT32_MAX
#define NO_VALUE UINT32_MAX

typedef enum { OF_TIME, OF_HOST, OF_TAG, OF_FIELD } Role;

/* One value that each row of a shape has. */
typedef struct {
    Literal before; /* the bytes between the value before, or the beginning of the row, and this one */
    Literal name;   /* of a tag or field */
    Role role;
    uint64_t hash; /* of its name */
    size_t bytes;  /* of all rows */
} RowValue;

/* Rows with the same keys in the same order. */
typedef struct RowShape {
    Literal measurement;
    Literal after; /* the bytes after the last value */
    RowValue *values;
    uint32_t count; /* of these */
    uint64_t hash;  /* of all that is around them */
    uint64_t names; /* the same for any order of the names, and with a time or without */
    uint32_t time, host; /* the numbers of these; NO_VALUE if there is none */
    uint32_t rows, first, last; /* how many, and the numbers of two */
    struct RowShape *follower;  /* the shape of the row after the latest one of this shape */
} RowShape;

typedef struct {
    uint32_t next;  /* row of the shape */
    uint32_t cells; /* the number of its first one */
} RowPlace;

/* Where a value is. */
typedef struct {
    uint32_t start, size; /* `start` is an offset in the data */
} Cell;

/* The numbers of shapes by their hashes, of which none is there twice. */
typedef struct {
    struct HashPlace *places;
    uint32_t room, count; /* places, a power of two; hashes */
} HashTable;

typedef struct {
    const uint8_t *data;
    Arena arena;
    RowShape **shapes; /* in the order in which they came first */
    uint32_t shape_count, shape_room;
    HashTable by_hash, by_names;
    RowPlace *rows;
    uint32_t row_count, row_room;
    Cell *cells;
    uint32_t cell_count, cell_room;
    bool no_memory;
} Rows;

/* Begin without rows. The first one is at the beginning of the data. */
void begin_rows(Rows *rows, const uint8_t *data);

/* Gather at most `count` rows, until one ends at `stop` or after it. Return the offset after the last. 0 if one of them is
 * not taken, or is not whole before `end`, or there is no memory. */
size_t gather_rows(Rows *rows, size_t stop, size_t end, size_t count);

/* The times of a map: offsets, both 0 without them, and the size of each if all have one first byte, which tells it. */
typedef struct {
    size_t start, end, width;
} RowTimes;

/* Count the bytes of the map of a shape. */
size_t row_map_bytes(const Rows *rows, const RowShape *shape);

/* Write the map of a shape. */
void put_row_map(const Rows *rows, const RowShape *shape, uint8_t *to, RowTimes *times);

void free_rows(Rows *rows);

#endif
