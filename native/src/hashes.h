/* Numbers made of bytes, which differ where the bytes do, nearly always. */
#ifndef ARCPIPE_HASHES_H
#define ARCPIPE_HASHES_H

#include <stddef.h>
#include <stdint.h>

/* A number that differs between processes, so that nobody can choose names that all have one place in a table. */
extern uint64_t hash_seed;

static inline uint64_t mix(uint64_t hash, uint64_t word)
{
    unsigned __int128 product = (unsigned __int128)(hash ^ word) * UINT64_C(0x9E3779B97F4A7C15);
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static inline uint64_t hash_of(const uint8_t *text, size_t size, uint64_t seed)
{
    uint64_t hash = mix(seed, size), word;
    for (; size >= 8; text += 8, size -= 8) {
        __builtin_memcpy(&word, text, 8);
        hash = mix(hash, word);
    }
    word = 0;
    for (size_t at = 0; at < size; at++)
        word = word << 8 | text[at];
    return mix(hash, word);
}

#endif
