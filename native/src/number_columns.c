#include <math.h>

#include "column_parts.h"

#define EXACT (INT64_C(1) << 53) /* the integers up to this one are all exact as floats */

/* Values that are read in one go where they have the same first byte. */
#define RUN 8

/* Read an integer that int64 holds; return its bytes, 0 if it is none. */
static inline size_t read_integer(const uint8_t *from, size_t left, int64_t *number)
{
    uint8_t marker = *from;
    if (marker < 0x80 || marker >= 0xE0) {
        *number = (int8_t)marker;
        return 1;
    }
    if (marker < UNSIGNED8 || marker > SIGNED64)
        return 0;
    size_t size = (size_t)1 << (marker & 3);
    if (left < 1 + size)
        return 0;
    uint64_t bits = big_endian(from + 1, size);
    if (marker < 0xD0) {
        if (bits > INT64_MAX)
            return 0;
        *number = (int64_t)bits;
    } else {
        unsigned shift = (unsigned)(64 - 8 * size);
        *number = (int64_t)(bits << shift) >> shift;
    }
    return 1 + size;
}

/* Tell whether the next values are a run of eight bytes each, after this first byte. */
static inline bool is_run(const uint8_t *from, const uint8_t *end, uint8_t marker)
{
    if ((size_t)(end - from) < 9 * RUN)
        return false;
    uint8_t differs = 0;
    for (size_t at = 0; at < RUN; at++)
        differs |= from[9 * at] ^ marker;
    return !differs;
}

Kind read_integers(const Column *column, int64_t *values, Nils *nils, Range *range)
{
    int64_t least = INT64_MAX, greatest = INT64_MIN;
    size_t row = 0;
    for (size_t number = 0; number < column->number; number++) {
        const uint8_t *at = column->parts[number].data, *end = at + column->parts[number].size;
        size_t stop = row + column->parts[number].count;
        fetch_part(column, number + 1);
        while (row < stop) {
            if (stop - row >= RUN && is_run(at, end, SIGNED64)) {
                fetch(at);
                fetch(at + 64);
                for (size_t each = 0; each < RUN; each++, at += 9) {
                    int64_t value = (int64_t)big_endian_word(at + 1);
                    values[row++] = value;
                    least = value < least ? value : least;
                    greatest = value > greatest ? value : greatest;
                }
                continue;
            }
            if (at == end)
                return LEFT;
            if (*at == NIL) {
                if (!add_nil(nils, row, column->count))
                    return LEFT;
                values[row++] = 0;
                at++;
                continue;
            }
            int64_t value;
            size_t size = read_integer(at, (size_t)(end - at), &value);
            if (!size)
                return *at == FLOAT32 || *at == FLOAT64 ? FLOATS : LEFT;
            at += size;
            values[row++] = value;
            least = value < least ? value : least;
            greatest = value > greatest ? value : greatest;
        }
        if (at != end)
            return LEFT;
    }
    *range = (Range){.least = least, .greatest = greatest};
    return INTEGERS;
}

Kind read_floats(const Column *column, double *values, Nils *nils, bool *settles)
{
    bool is_number = false;
    size_t row = 0;
    for (size_t number = 0; number < column->number; number++) {
        const uint8_t *at = column->parts[number].data, *end = at + column->parts[number].size;
        size_t stop = row + column->parts[number].count;
        fetch_part(column, number + 1);
        while (row < stop) {
            if (stop - row >= RUN && is_run(at, end, FLOAT64)) {
                fetch(at);
                fetch(at + 64);
                for (size_t each = 0; each < RUN; each++, at += 9) {
                    uint64_t bits = big_endian_word(at + 1);
                    memcpy(&values[row++], &bits, 8);
                }
                is_number = is_number || !isnan(values[row - 1]);
                if (!is_number)
                    for (size_t each = 2; each <= RUN; each++)
                        is_number |= !isnan(values[row - each]);
                continue;
            }
            if (at == end)
                return LEFT;
            size_t left = (size_t)(end - at);
            if (*at == FLOAT64 || *at == FLOAT32) {
                size_t size = *at == FLOAT64 ? 8 : 4;
                if (left < 1 + size)
                    return LEFT;
                uint64_t bits = big_endian(at + 1, size);
                if (size == 8) {
                    memcpy(&values[row], &bits, 8);
                } else {
                    uint32_t half = (uint32_t)bits;
                    float single;
                    memcpy(&single, &half, 4);
                    values[row] = single;
                }
                is_number |= !isnan(values[row]);
                row++;
                at += 1 + size;
            } else if (*at == NIL) {
                if (!add_nil(nils, row, column->count))
                    return LEFT;
                values[row++] = 0;
                at++;
            } else {
                int64_t value;
                size_t size = read_integer(at, left, &value);
                if (!size || value > EXACT || value < -EXACT)
                    return LEFT;
                values[row++] = (double)value;
                is_number = true;
                at += size;
            }
        }
        if (at != end)
            return LEFT;
    }
    *settles = is_number;
    return FLOATS;
}
