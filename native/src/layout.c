#include "layout.h"

#include <string.h>

#include "column_parts.h"

#define SHORT_TEXT 5     /* the upper three bits of a text that has its length in the others */
#define LONGEST_SHORT 32 /* bytes */

/* Values that are stepped over in one go where they have the same first byte. */
#define RUN 8

/* Bytes of a value by its first byte from 0xC0 on; 0 where that does not tell, or for what is no flat value. */
static const uint8_t SIZES[32] = {
    [0x00] = 1, [0x02] = 1, [0x03] = 1,                         /* nil, booleans */
    [0x0A] = 5, [0x0B] = 9,                                     /* floats */
    [0x0C] = 2, [0x0D] = 3, [0x0E] = 5, [0x0F] = 9,             /* unsigned */
    [0x10] = 2, [0x11] = 3, [0x12] = 5, [0x13] = 9,             /* signed */
    [0x14] = 3, [0x15] = 4, [0x16] = 6, [0x17] = 10, [0x18] = 18 /* extensions of fixed size */
};

size_t read_array_header(const uint8_t *at, size_t left, size_t *count)
{
    if (left && *at >> 4 == 9) {
        *count = *at & 15;
        return 1;
    }
    size_t header = left && *at == 0xDC ? 3 : left && *at == 0xDD ? 5 : 0;
    if (!header || left < header)
        return 0;
    *count = big_endian(at + 1, header - 1);
    return header;
}

size_t header_size(size_t count)
{
    return count < 16 ? 1 : count < 0x10000 ? 3 : 5;
}

/* Tell whether the first byte of a flat value tells its size. */
static bool has_fixed_size(uint8_t marker)
{
    return marker < 0xC0 || marker >= 0xE0 || SIZES[marker & 31];
}

static bool is_run(const uint8_t *from, size_t size)
{
    uint8_t differs = 0;
    for (size_t at = 1; at < RUN; at++)
        differs |= from[size * at] ^ from[0];
    return !differs;
}

/* Return the bytes of the flat value at a place; 0 if it is none, or not whole. */
static inline size_t value_size(const uint8_t *at, size_t left)
{
    uint8_t marker = *at;
    size_t size;
    if (marker < 0x80 || marker >= 0xE0)
        return 1;
    if (marker < 0xA0) /* nested */
        return 0;
    if (marker < 0xC0) {
        size = 1 + (marker & 31);
    } else if (SIZES[marker & 31]) {
        size = SIZES[marker & 31];
    } else {
        size_t extra; /* bytes of the length, and of an extension's code */
        if (marker >= 0xC4 && marker <= 0xC6)
            extra = (size_t)1 << (marker - 0xC4);
        else if (marker >= 0xC7 && marker <= 0xC9)
            extra = (size_t)1 << (marker - 0xC7);
        else if (marker >= 0xD9 && marker <= 0xDB)
            extra = (size_t)1 << (marker - 0xD9);
        else
            return 0;
        if (left < 1 + extra)
            return 0;
        size = 1 + extra + big_endian(at + 1, extra) + (marker >= 0xC7 && marker <= 0xC9);
    }
    return size > left ? 0 : size;
}

/* Return the end of an array of flat values at the beginning of some bytes, and their number; NULL if it is none. */
static const uint8_t *array_end(const uint8_t *at, const uint8_t *end, size_t *count)
{
    size_t header = read_array_header(at, (size_t)(end - at), count);
    if (!header)
        return NULL;
    at += header;
    for (size_t left = *count; left; left--) {
        while (left >= RUN && (size_t)(end - at) >= 9 * RUN && (*at == FLOAT64 || *at == SIGNED64) && is_run(at, 9)) {
            at += 9 * RUN;
            left -= RUN;
            if (!left)
                return at;
        }
        /* In a loop of its own, which is twice as fast. */
        for (; left && end - at > LONGEST_SHORT && *at >> 5 == SHORT_TEXT; left--)
            at += 1 + (*at & 31);
        if (!left)
            return at;
        if (at == end)
            return NULL;
        size_t size = value_size(at, (size_t)(end - at));
        if (!size)
            return NULL;
        at += size;
    }
    return at;
}

bool find_arrays(const uint8_t *data, size_t size, const Literal *literals, Span *arrays, size_t number, size_t *rows)
{
    const uint8_t *at = data, *end = data + size;
    for (size_t each = 0; each <= number; each++) {
        const Literal *literal = &literals[each];
        if ((size_t)(end - at) < literal->size || memcmp(at, literal->text, literal->size))
            return false;
        at += literal->size;
        if (each == number)
            return at == end;
        size_t count;
        const uint8_t *after = array_end(at, end, &count);
        if (after == NULL || !count || (each && count != *rows))
            return false;
        *rows = count;
        arrays[each] = (Span){(uint64_t)(at - data), (uint64_t)(after - data)};
        at = after;
    }
    return false;
}

/* Read a short text of printable ASCII; NULL if there is anything else. */
static const uint8_t *name_end(const uint8_t *at, const uint8_t *end, Literal *name)
{
    if (at == end || *at >> 5 != SHORT_TEXT)
        return NULL;
    *name = (Literal){at + 1, *at & 31};
    if (!name->size || (size_t)(end - at) <= name->size)
        return NULL;
    bool is_printable = true;
    for (size_t sign = 0; sign < name->size; sign++)
        is_printable &= name->text[sign] >= ' ' && name->text[sign] <= '~';
    return is_printable ? name->text + name->size : NULL;
}

size_t find_named(const uint8_t *data, size_t size, size_t start, Named *columns, size_t number, size_t *rows)
{
    const uint8_t *at = data + start, *end = data + size;
    for (size_t each = 0; each < number; each++) {
        at = name_end(at, end, &columns[each].name);
        if (at == NULL)
            return 0;
        size_t count, header = read_array_header(at, (size_t)(end - at), &count);
        const uint8_t *after = array_end(at, end, &count);
        if (after == NULL || !count || (each && count != *rows))
            return 0;
        *rows = count;
        columns[each].values = (Span){(uint64_t)(at + header - data), (uint64_t)(after - data)};
        at = after;
    }
    return (size_t)(at - data);
}

size_t width_of(const uint8_t *data, Span values, size_t count)
{
    const uint8_t *at = data + values.start;
    size_t width = value_size(at, (size_t)(values.end - values.start));
    if (!has_fixed_size(*at) || values.end - values.start != width * count)
        return 0;
    uint8_t differs = 0;
    for (size_t each = 0; each < count; each++)
        differs |= at[each * width] ^ *at;
    return differs ? 0 : width;
}
