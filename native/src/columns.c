#include "columns.h"

#include <stdlib.h>
#include <string.h>

#include "column_parts.h"

#define END_BYTES 64 /* of a part at each end, by which most parts differ */

bool add_nil(Nils *nils, size_t row, size_t rows)
{
    if (nils->valid == NULL) {
        size_t size = (rows + 7) / 8;
        nils->valid = malloc(size);
        if (nils->valid == NULL)
            return false;
        memset(nils->valid, 0xFF, size);
        if (rows % 8)
            nils->valid[size - 1] = (uint8_t)((1u << rows % 8) - 1);
    }
    nils->valid[row / 8] &= (uint8_t)~(1u << row % 8);
    nils->nils++;
    return true;
}

/* Make a number of a part's size, and of its bytes at both ends. */
static uint64_t hash_of_part(const Part *part)
{
    uint64_t hash = part->size, word;
    size_t ends = part->size < END_BYTES ? part->size : END_BYTES;
    const uint8_t *places[2] = {part->data, part->data + part->size - ends};
    for (int end = 0; end < 2; end++) {
        for (size_t at = 0; at < ends; at += 8) {
            word = 0;
            memcpy(&word, places[end] + at, ends - at < 8 ? ends - at : 8);
            hash = dictionary_mix(hash ^ dictionary_seeds[0] ^ word, dictionary_seeds[1]);
        }
    }
    return hash | 1; /* not 0, which is a free place */
}

bool may_repeat(const Column *column)
{
    size_t mask = 15, different = 0;
    while (mask < 2 * column->number)
        mask = 2 * mask + 1;
    uint64_t *places = calloc(mask + 1, sizeof(uint64_t));
    if (places == NULL)
        return true;
    for (size_t number = 0; number < column->number && 2 * different <= column->number; number++) {
        uint64_t hash = hash_of_part(&column->parts[number]);
        size_t at = (hash >> 32) & mask;
        while (places[at] && places[at] != hash)
            at = (at + 1) & mask;
        different += !places[at];
        places[at] = hash;
    }
    free(places);
    return 2 * different <= column->number;
}

Kind kind_of(const Column *column)
{
    for (size_t number = 0; number < column->number; number++) {
        const Part *part = &column->parts[number];
        for (size_t at = 0; at < part->size; at++) {
            uint8_t marker = part->data[at];
            if (marker == NIL)
                continue;
            if (marker == FLOAT32 || marker == FLOAT64)
                return FLOATS;
            if (marker < 0x80 || marker >= 0xE0 || (marker >= UNSIGNED8 && marker <= SIGNED64))
                return INTEGERS;
            return (marker >= 0xA0 && marker < NIL) || (marker >= STRING8 && marker <= STRING8 + 2) ? TEXTS : LEFT;
        }
    }
    return LEFT;
}
