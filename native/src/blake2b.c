#include "blake2b.h"

#include <stdbool.h>
#include <string.h>

#include "words.h"

#define BLOCK_BYTES ((size_t)128)

static const uint64_t START[8] = {
    UINT64_C(0x6A09E667F3BCC908), UINT64_C(0xBB67AE8584CAA73B), UINT64_C(0x3C6EF372FE94F82B),
    UINT64_C(0xA54FF53A5F1D36F1), UINT64_C(0x510E527FADE682D1), UINT64_C(0x9B05688C2B3E6C1F),
    UINT64_C(0x1F83D9ABFB41BD6B), UINT64_C(0x5BE0CD19137E2179),
};

/* The order of the words of a block in each of ten rounds; the last two are the first ones again. */
static const uint8_t ORDER[10][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
    {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4}, {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
    {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13}, {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
    {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11}, {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
    {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5}, {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0},
};

static inline uint64_t turn(uint64_t word, unsigned by)
{
    return word >> by | word << (64 - by);
}

static inline void mix(uint64_t *v, int a, int b, int c, int d, uint64_t first, uint64_t second)
{
    v[a] += v[b] + first;
    v[d] = turn(v[d] ^ v[a], 32);
    v[c] += v[d];
    v[b] = turn(v[b] ^ v[c], 24);
    v[a] += v[b] + second;
    v[d] = turn(v[d] ^ v[a], 16);
    v[c] += v[d];
    v[b] = turn(v[b] ^ v[c], 63);
}

/* Written out, so that the order of each round is known to the compiler. */
static inline void mix_round(uint64_t *v, const uint64_t *words, const uint8_t *order)
{
    mix(v, 0, 4, 8, 12, words[order[0]], words[order[1]]);
    mix(v, 1, 5, 9, 13, words[order[2]], words[order[3]]);
    mix(v, 2, 6, 10, 14, words[order[4]], words[order[5]]);
    mix(v, 3, 7, 11, 15, words[order[6]], words[order[7]]);
    mix(v, 0, 5, 10, 15, words[order[8]], words[order[9]]);
    mix(v, 1, 6, 11, 12, words[order[10]], words[order[11]]);
    mix(v, 2, 7, 8, 13, words[order[12]], words[order[13]]);
    mix(v, 3, 4, 9, 14, words[order[14]], words[order[15]]);
}

/* Mix a block into the state; `count` are the bytes up to its end. */
static void compress(uint64_t *state, const uint8_t *block, uint64_t count, bool is_last)
{
    uint64_t words[16], v[16];
    for (int at = 0; at < 16; at++)
        words[at] = little_endian_word(block + 8 * at);
    memcpy(v, state, 64);
    memcpy(v + 8, START, 64);
    v[12] ^= count;
    if (is_last)
        v[14] = ~v[14];
    mix_round(v, words, ORDER[0]);
    mix_round(v, words, ORDER[1]);
    mix_round(v, words, ORDER[2]);
    mix_round(v, words, ORDER[3]);
    mix_round(v, words, ORDER[4]);
    mix_round(v, words, ORDER[5]);
    mix_round(v, words, ORDER[6]);
    mix_round(v, words, ORDER[7]);
    mix_round(v, words, ORDER[8]);
    mix_round(v, words, ORDER[9]);
    mix_round(v, words, ORDER[0]);
    mix_round(v, words, ORDER[1]);
    for (int at = 0; at < 8; at++)
        state[at] ^= v[at] ^ v[at + 8];
}

void blake2b(const uint8_t *data, size_t size, uint8_t *digest)
{
    uint64_t state[8], count = 0;
    memcpy(state, START, sizeof state);
    state[0] ^= UINT64_C(0x01010000) ^ BLAKE2B_BYTES; /* one tree of depth one, no key, and the size of the digest */
    for (; size > BLOCK_BYTES; data += BLOCK_BYTES, size -= BLOCK_BYTES) {
        count += BLOCK_BYTES;
        compress(state, data, count, false);
    }
    uint8_t last[BLOCK_BYTES] = {0};
    memcpy(last, data, size);
    compress(state, last, count + size, true);
    for (int at = 0; at < BLAKE2B_BYTES; at++)
        digest[at] = (uint8_t)(state[at / 8] >> 8 * (at % 8));
}
