/* Bytes of names and values: escapes, UTF-8, and comparing them. */
#ifndef ARCPIPE_TEXTS_H
#define ARCPIPE_TEXTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* The characters before which a backslash is dropped, as bits. One before anything else stands for itself. */
enum { COMMA = 1, SPACE = 2, EQUALS = 4, QUOTE = 8, BACKSLASH = 16 };

/* Copy a text without its escapes; return the bytes of the copy, at most `size`. `to` may be NULL, to count only. */
size_t unescape(const uint8_t *text, size_t size, unsigned escaped, uint8_t *to);

/* Tell whether Python's strict decoder takes these bytes: no surrogates, nothing that is longer than it need be. */
bool is_utf8(const uint8_t *text, size_t size);

/* Count the bytes before the first one that is not ASCII. */
static inline size_t ascii_bytes(const uint8_t *text, size_t size)
{
    size_t at = 0;
    for (; at + 32 <= size; at += 32) {
        uint64_t first, second, third, fourth;
        memcpy(&first, text + at, 8);
        memcpy(&second, text + at + 8, 8);
        memcpy(&third, text + at + 16, 8);
        memcpy(&fourth, text + at + 24, 8);
        if ((first | second | third | fourth) & UINT64_C(0x8080808080808080))
            break;
    }
    while (at < size && text[at] < 0x80)
        at++;
    return at;
}

/* Tell whether two texts of one size are the same: names are short, so a call of `memcmp` would be most of it. */
static inline bool is_same(const uint8_t *one, const uint8_t *other, size_t size)
{
    uint64_t left, right;
    if (size >= 8) {
        for (size_t at = 0; at + 8 < size; at += 8) {
            memcpy(&left, one + at, 8);
            memcpy(&right, other + at, 8);
            if (left != right)
                return false;
        }
        memcpy(&left, one + size - 8, 8);
        memcpy(&right, other + size - 8, 8);
        return left == right;
    }
    if (size >= 4) {
        uint32_t first, second, third, fourth;
        memcpy(&first, one, 4);
        memcpy(&second, other, 4);
        memcpy(&third, one + size - 4, 4);
        memcpy(&fourth, other + size - 4, 4);
        return first == second && third == fourth;
    }
    for (size_t at = 0; at < size; at++)
        if (one[at] != other[at])
            return false;
    return true;
}

#endif
