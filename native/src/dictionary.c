#include "dictionary.h"

#include <stdlib.h>

#include "texts.h"

#define FIRST_ROOM 256
#define PLACES_PER_WORD 8 /* so that most texts are in their first place */
/* Places that are looked at for a text. More are needed only by chance that does not happen, or by a mistake. */
#define MOST_PROBES 256

uint64_t dictionary_seeds[2] = {UINT64_C(0x9E3779B97F4A7C15), UINT64_C(0xD6E8FEB86659FD93)};

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define FIRST(bytes) ((bytes) == 8 ? UINT64_MAX : (UINT64_C(1) << 8 * (bytes)) - 1)
#else
#define FIRST(bytes) ((bytes) == 8 ? UINT64_MAX : ~(UINT64_MAX >> 8 * (bytes)))
#endif
#define LOW(size) {FIRST(size), 0}
#define HIGH(size) {UINT64_MAX, FIRST(size - 8)}

const uint64_t DICTIONARY_MASKS[17][2] = {LOW(0),  LOW(1),   LOW(2),   LOW(3),   LOW(4),   LOW(5),
                                          LOW(6),  LOW(7),   LOW(8),   HIGH(9),  HIGH(10), HIGH(11),
                                          HIGH(12), HIGH(13), HIGH(14), HIGH(15), HIGH(16)};

void dictionary_seed(uint64_t seed)
{
    dictionary_seeds[0] ^= seed;
    dictionary_seeds[1] ^= seed << 32 | seed >> 32;
}

bool dictionary_begin(Dictionary *dictionary)
{
    *dictionary = (Dictionary){.room = FIRST_ROOM, .mask = PLACES_PER_WORD * FIRST_ROOM - 1};
    dictionary->words = malloc((FIRST_ROOM + 1) * sizeof(Word));
    dictionary->marks = calloc(FIRST_ROOM, 1);
    dictionary->places = calloc(PLACES_PER_WORD * FIRST_ROOM, sizeof(uint32_t));
    if (dictionary->words == NULL || dictionary->marks == NULL || dictionary->places == NULL)
        return false;
    dictionary->words[0] = (Word){.size = UINT32_MAX};
    return true;
}

void dictionary_free(Dictionary *dictionary)
{
    free(dictionary->words);
    free(dictionary->marks);
    free(dictionary->places);
    *dictionary = (Dictionary){0};
}

/* Find a free place after those that are taken. */
static uint32_t free_place(const uint32_t *places, uint32_t mask, uint32_t hash)
{
    uint32_t at = hash & mask;
    while (places[at])
        at = (at + 1) & mask;
    return at;
}

/* Make twice as much room. */
static bool grow(Dictionary *dictionary)
{
    uint32_t room = 2 * dictionary->room, mask = PLACES_PER_WORD * room - 1;
    Word *words = realloc(dictionary->words, ((size_t)room + 1) * sizeof(Word));
    if (words != NULL)
        dictionary->words = words;
    uint8_t *marks = realloc(dictionary->marks, room);
    if (marks != NULL)
        dictionary->marks = marks;
    uint32_t *places = calloc((size_t)mask + 1, sizeof(uint32_t));
    if (words == NULL || marks == NULL || places == NULL) {
        free(places);
        return false;
    }
    memset(marks + dictionary->room, 0, room - dictionary->room);
    for (uint32_t number = 1; number <= dictionary->count; number++)
        places[free_place(places, mask, words[number].hash)] = number;
    free(dictionary->places);
    dictionary->places = places;
    dictionary->room = room;
    dictionary->mask = mask;
    return true;
}

/* Make a word of a text, of which `left` bytes can be read. */
static Word word_of(const uint8_t *text, uint32_t size, size_t left)
{
    uint64_t first[2] = {0, 0};
    uint32_t begun = size < 16 ? size : 16;
    memcpy(first, text, left >= 16 ? 16 : begun);
    Word word = {.low = first[0] & DICTIONARY_MASKS[begun][0],
                 .high = first[1] & DICTIONARY_MASKS[begun][1],
                 .text = text,
                 .size = size};
    uint64_t hash = dictionary_mix(word.low ^ dictionary_seeds[0], word.high ^ dictionary_seeds[1] ^ size);
    for (uint32_t at = 16; at < size; at += 8) {
        uint64_t more;
        memcpy(&more, text + (at + 8 <= size ? at : size - 8), 8);
        hash = dictionary_mix(hash ^ more, dictionary_seeds[1]);
    }
    word.hash = (uint32_t)(hash ^ hash >> 32);
    return word;
}

static bool is_equal(const Word *one, const Word *other)
{
    return one->low == other->low && one->high == other->high && one->size == other->size &&
           (one->size <= 16 || !memcmp(one->text + 16, other->text + 16, one->size - 16));
}

uint32_t dictionary_number(Dictionary *dictionary, const uint8_t *text, uint32_t size, size_t left)
{
    Word word = word_of(text, size, left);
    uint32_t at = word.hash & dictionary->mask;
    for (int probes = 0; dictionary->places[at]; at = (at + 1) & dictionary->mask) {
        uint32_t number = dictionary->places[at];
        if (is_equal(&dictionary->words[number], &word))
            return number - 1;
        if (++probes > MOST_PROBES)
            return NO_WORD;
    }
    if (!is_utf8(text, size) || (dictionary->count == dictionary->room && !grow(dictionary)))
        return NO_WORD;
    dictionary->words[++dictionary->count] = word;
    dictionary->places[free_place(dictionary->places, dictionary->mask, word.hash)] = dictionary->count;
    dictionary->text_bytes += size;
    return dictionary->count - 1;
}
