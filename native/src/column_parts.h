/* What the readers of columns share: see columns.h. */
#ifndef ARCPIPE_COLUMN_PARTS_H
#define ARCPIPE_COLUMN_PARTS_H

#include <stdbool.h>
#include <string.h>

#include "columns.h"
#include "words.h"

/* First bytes of values in MessagePack. */
enum { NIL = 0xC0, FLOAT32 = 0xCA, FLOAT64 = 0xCB, UNSIGNED8 = 0xCC, SIGNED64 = 0xD3, STRING8 = 0xD9 };

#define AHEAD 1024 /* bytes */

/* Read a number of 1 to 8 bytes. */
static inline uint64_t big_endian(const uint8_t *from, size_t size)
{
    uint64_t number = 0;
    if (size == 8)
        return big_endian_word(from);
    for (size_t at = 0; at < size; at++)
        number = number << 8 | from[at];
    return number;
}

/* Have bytes further on brought into the cache: a column's parts are too short for the processor to see what comes next.
 * There need not be any. */
static inline void fetch(const uint8_t *at)
{
    __builtin_prefetch(at + AHEAD);
}

/* Have the beginning of the next part brought into the cache. */
static inline void fetch_part(const Column *column, size_t number)
{
    if (number < column->number)
        for (size_t at = 0; at < AHEAD; at += 64)
            __builtin_prefetch(column->parts[number].data + at);
}

/* Note a nil. False if there is no memory. */
bool add_nil(Nils *nils, size_t row, size_t rows);

#endif
