/* What the readers of columns share: see columns.h. */
#ifndef ARCPIPE_COLUMN_PARTS_H
#define ARCPIPE_COLUMN_PARTS_H

#include <stdbool.h>
#include <string.h>

#include "columns.h"
#include "values.h"

#define AHEAD 1024 /* bytes */

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
