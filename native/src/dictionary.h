/* The different texts of a column, in the order in which they came first. */
#ifndef ARCPIPE_DICTIONARY_H
#define ARCPIPE_DICTIONARY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* A text. Its first 16 bytes, with zeros after it, decide most comparisons without a look at the others. */
typedef struct {
    uint64_t low, high;
    const uint8_t *text; /* in the column's bytes */
    uint32_t size, hash;
} Word;

typedef struct {
    Word *words;            /* from the second one on; the first is none, and equal to no text */
    uint8_t *marks;         /* of the words: for whoever uses the dictionary, 0 at first */
    uint32_t *places;       /* by hash: the number of a word, plus one: its index; 0 in a free place */
    uint32_t count, room;   /* words; room for words */
    uint32_t mask;          /* places - 1 */
    size_t text_bytes;
} Dictionary;

enum { NO_WORD = UINT32_MAX };

/* Begin an empty one; false if there is no memory. */
bool dictionary_begin(Dictionary *dictionary);

void dictionary_free(Dictionary *dictionary);

/* Return the number of a text, of which `left` bytes can be read; it is taken if it is new. NO_WORD if it cannot be: it
 * is no UTF-8, too many others are in its place, or there is no memory. */
uint32_t dictionary_number(Dictionary *dictionary, const uint8_t *text, uint32_t size, size_t left);

/* Hashes differ between processes by this: nobody can make texts for one place. */
void dictionary_seed(uint64_t seed);

extern uint64_t dictionary_seeds[2];
extern const uint64_t DICTIONARY_MASKS[17][2]; /* of the first bytes of a text, by its size */

static inline uint64_t dictionary_mix(uint64_t one, uint64_t other)
{
    unsigned __int128 product = (unsigned __int128)one * other;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

/* Return the number of a text of 16 bytes at most that is in its first place, plus one; 0 if it is not. 16 bytes can be
 * read. */
static inline uint32_t dictionary_seen(const Word *words, const uint32_t *places, uint32_t mask, const uint8_t *text,
                                       uint32_t size)
{
    uint64_t low, high;
    memcpy(&low, text, 8);
    memcpy(&high, text + 8, 8);
    low &= DICTIONARY_MASKS[size][0];
    high &= DICTIONARY_MASKS[size][1];
    uint64_t hash = dictionary_mix(low ^ dictionary_seeds[0], high ^ dictionary_seeds[1] ^ size);
    uint32_t number = places[(uint32_t)(hash ^ hash >> 32) & mask];
    const Word *word = &words[number];
    return word->low == low && word->high == high && word->size == size ? number : 0;
}

#endif
