#include "checksum.h"

#include <string.h>

#include "words.h"

/* The polynomial without its highest power, and its lowest power in the highest bit, as all of them here. */
#define POLYNOMIAL UINT32_C(0xEDB88320)

/* For each byte, what it makes of the checksum if 0 to 7 more bytes follow. */
static uint32_t tables[8][256];

static uint32_t add_by_tables(uint32_t crc, const uint8_t *data, size_t size)
{
    for (; size >= 8; data += 8, size -= 8) {
        uint64_t word = little_endian_word(data) ^ crc;
        crc = 0;
        for (int byte = 0; byte < 8; byte++)
            crc ^= tables[7 - byte][word >> 8 * byte & 0xFF];
    }
    for (; size > 0; data++, size--)
        crc = crc >> 8 ^ tables[0][(crc ^ *data) & 0xFF];
    return crc;
}

#if defined(__x86_64__) && !defined(ARCPIPE_WITHOUT_CLMUL)
#include <immintrin.h>

/* x^191 and x^127 modulo the polynomial, and x^96 divided by it, without its highest power. */
#define FAR_POWER UINT64_C(0x65673B4600000000)
#define NEAR_POWER UINT64_C(0x9BA54C6F00000000)
#define QUOTIENT UINT64_C(0x5A72D812FB808B20)

#define USES_PCLMUL __attribute__((target("pclmul")))

USES_PCLMUL static inline __m128i single(uint64_t word)
{
    return _mm_cvtsi64_si128((long long)word);
}

USES_PCLMUL static inline uint64_t low_half(__m128i both)
{
    return (uint64_t)_mm_cvtsi128_si64(both);
}

USES_PCLMUL static inline uint64_t high_half(__m128i both)
{
    return low_half(_mm_unpackhi_epi64(both, both));
}

/* Reduce 64 bits, times x^32, as Barrett does. */
USES_PCLMUL static inline uint32_t reduce(uint64_t word)
{
    uint64_t quotient = word ^ low_half(_mm_clmulepi64_si128(single(word), single(QUOTIENT), 0)) << 1;
    __m128i product = _mm_clmulepi64_si128(single(quotient), single(POLYNOMIAL), 0);
    return (uint32_t)(high_half(product) << 1 | low_half(product) >> 63);
}

/* Without tables: between two keys, a worker does too much for them to stay in the cache. */
USES_PCLMUL static uint32_t add_by_products(uint32_t crc, const uint8_t *data, size_t size)
{
    if (size >= 16) {
        const __m128i powers = _mm_set_epi64x((long long)NEAR_POWER, (long long)FAR_POWER);
        __m128i sum = _mm_xor_si128(_mm_loadu_si128((const __m128i *)data), single(crc));
        for (data += 16, size -= 16; size >= 16; data += 16, size -= 16) {
            __m128i far = _mm_clmulepi64_si128(sum, powers, 0x00), near = _mm_clmulepi64_si128(sum, powers, 0x11);
            sum = _mm_xor_si128(_mm_xor_si128(far, near), _mm_loadu_si128((const __m128i *)data));
        }
        crc = reduce(high_half(sum) ^ reduce(low_half(sum)));
    }
    if (size >= 8) {
        crc = reduce(little_endian_word(data) ^ crc);
        data += 8;
        size -= 8;
    }
    if (size == 0)
        return crc;
    uint8_t rest[8] = {0};
    memcpy(rest, data, size);
    /* Of less than four bytes, a part of the checksum stays. */
    uint32_t stays = size < 4 ? crc >> 8 * size : 0;
    return stays ^ reduce((little_endian_word(rest) ^ crc) << (64 - 8 * size));
}

static uint32_t (*add)(uint32_t crc, const uint8_t *data, size_t size) = add_by_tables;

static void choose(void)
{
    if (__builtin_cpu_supports("pclmul"))
        add = add_by_products;
}
#else
#define add add_by_tables
static void choose(void)
{
}
#endif

void prepare_crc32(void)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? POLYNOMIAL : 0);
        tables[0][byte] = crc;
    }
    for (int more = 1; more < 8; more++)
        for (int byte = 0; byte < 256; byte++) {
            uint32_t crc = tables[more - 1][byte];
            tables[more][byte] = crc >> 8 ^ tables[0][crc & 0xFF];
        }
    choose();
}

uint32_t add_to_crc32(uint32_t crc, const uint8_t *data, size_t size)
{
    return ~add(~crc, data, size);
}
