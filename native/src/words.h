/* Eight bytes as a number, whatever the order of the machine. */
#ifndef ARCPIPE_WORDS_H
#define ARCPIPE_WORDS_H

#include <stdint.h>
#include <string.h>

/* The first byte is the lowest. */
static inline uint64_t little_endian_word(const uint8_t *from)
{
    uint64_t word;
    memcpy(&word, from, sizeof word);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    word = __builtin_bswap64(word);
#endif
    return word;
}

/* The first byte is the highest. */
static inline uint64_t big_endian_word(const uint8_t *from)
{
    return __builtin_bswap64(little_endian_word(from));
}

#endif
