#include "texts.h"

static unsigned bit_of(uint8_t character)
{
    switch (character) {
    case ',':
        return COMMA;
    case ' ':
        return SPACE;
    case '=':
        return EQUALS;
    case '"':
        return QUOTE;
    case '\\':
        return BACKSLASH;
    default:
        return 0;
    }
}

/* From the left: a backslash that is kept is passed alone, so with BACKSLASH not among `escaped`, two of them are two,
 * and the second one may escape what follows. With it, each takes the character after it along. */
size_t unescape(const uint8_t *text, size_t size, unsigned escaped, uint8_t *to)
{
    size_t count = 0;
    for (size_t at = 0; at < size; at++, count++) {
        if (text[at] == '\\' && at + 1 < size && bit_of(text[at + 1]) & escaped)
            at++;
        if (to != NULL)
            to[count] = text[at];
    }
    return count;
}

static bool continues(uint8_t byte)
{
    return (byte & 0xC0) == 0x80;
}

bool is_utf8(const uint8_t *text, size_t size)
{
    size_t at = 0;
    while (at < size) {
        uint8_t first = text[at];
        size_t left = size - at;
        if (first < 0x80) {
            at++;
        } else if (first < 0xE0) {
            if (first < 0xC2 || left < 2 || !continues(text[at + 1]))
                return false;
            at += 2;
        } else if (first < 0xF0) {
            if (left < 3 || !continues(text[at + 1]) || !continues(text[at + 2]))
                return false;
            if ((first == 0xE0 && text[at + 1] < 0xA0) || (first == 0xED && text[at + 1] > 0x9F))
                return false;
            at += 3;
        } else {
            if (first > 0xF4 || left < 4 || !continues(text[at + 1]) || !continues(text[at + 2]) ||
                !continues(text[at + 3]))
                return false;
            if ((first == 0xF0 && text[at + 1] < 0x90) || (first == 0xF4 && text[at + 1] > 0x8F))
                return false;
            at += 4;
        }
    }
    return true;
}
