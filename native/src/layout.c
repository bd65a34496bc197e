#include "layout.h"

#include <string.h>

#include "values.h"

/* Values that are stepped over in one go where they have the same first byte. */
#define RUN 8

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

static bool is_run(const uint8_t *from, size_t size)
{
    uint8_t differs = 0;
    for (size_t at = 1; at < RUN; at++)
        differs |= from[size * at] ^ from[0];
    return !differs;
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
    return is_printable(name->text, name->size) ? name->text + name->size : NULL;
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
