/* Values in MessagePack by their first bytes. */
#ifndef ARCPIPE_VALUES_H
#define ARCPIPE_VALUES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "words.h"

/* First bytes of values. */
enum { NIL = 0xC0, FLOAT32 = 0xCA, FLOAT64 = 0xCB, UNSIGNED8 = 0xCC, SIGNED64 = 0xD3, STRING8 = 0xD9 };

#define SHORT_TEXT 5     /* the upper three bits of a text that has its length in the others */
#define LONGEST_SHORT 32 /* bytes */

/* Bytes of a value by its first byte from 0xC0 on; 0 where that does not tell, or for what is no flat value. */
static const uint8_t SIZES[32] = {
    [0x00] = 1, [0x02] = 1, [0x03] = 1,                         /* nil, booleans */
    [0x0A] = 5, [0x0B] = 9,                                     /* floats */
    [0x0C] = 2, [0x0D] = 3, [0x0E] = 5, [0x0F] = 9,             /* unsigned */
    [0x10] = 2, [0x11] = 3, [0x12] = 5, [0x13] = 9,             /* signed */
    [0x14] = 3, [0x15] = 4, [0x16] = 6, [0x17] = 10, [0x18] = 18 /* extensions of fixed size */
};

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

/* Tell whether the first byte of a flat value tells its size. */
static inline bool has_fixed_size(uint8_t marker)
{
    return marker < 0xC0 || marker >= 0xE0 || SIZES[marker & 31];
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

/* Read the header of a text of less than 2^16 bytes with the shortest header that it may have; return its bytes, 0 for all
 * else. */
static inline size_t text_header(const uint8_t *at, size_t left, size_t *size)
{
    uint8_t marker = *at;
    size_t header;
    if (marker >= 0xA0 && marker < NIL) {
        *size = marker & 31;
        header = 1;
    } else if (marker == STRING8 && left >= 2) {
        *size = at[1];
        header = *size < 32 ? 0 : 2;
    } else if (marker == STRING8 + 1 && left >= 3) {
        *size = big_endian(at + 1, 2);
        header = *size < 0x100 ? 0 : 3;
    } else {
        return 0; /* longer ones are rare */
    }
    return left - header < *size ? 0 : header;
}

/* Tell whether a text is printable ASCII. */
static inline bool is_printable(const uint8_t *text, size_t size)
{
    bool is_so = true;
    for (size_t at = 0; at < size; at++)
        is_so &= text[at] >= ' ' && text[at] <= '~';
    return is_so;
}

#endif
