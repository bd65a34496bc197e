/* Numbers as most are, read in one go, without loops over their digits; `numbers.c` reads all others.
 *
 * Digits become a float in one of three ways, each of which rounds correctly, as Python's `float()` does:
 *
 *   exact   Up to 2^53, times or divided by a power of ten that a float has exactly (Clinger, 1990).
 *   wide    Up to 19 digits, times 128 bits of a power of ten (Lemire, 2021; `powers.h`).
 *   slow    `strtod_l` of the C library, which takes as many digits as it gets.
 */
#ifndef ARCPIPE_DIGITS_H
#define ARCPIPE_DIGITS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "powers.h"
#include "words.h"

#define MOST_DIGITS 19      /* of a significand that fits into 64 bits, whatever they are */
#define MOST_USUAL_BYTES 32 /* that `read_usual_float` looks at */

static inline bool is_digit(uint8_t byte)
{
    return (uint8_t)(byte - '0') <= 9;
}

/* Eight bytes, the first one lowest, with '0' to '9' as 0 to 9. */
static inline uint64_t word_at(const uint8_t *at)
{
    return little_endian_word(at) ^ UINT64_C(0x3030303030303030);
}

/* Mark the bytes of a word that are no digits, each by its highest bit. */
static inline uint64_t other_bytes(uint64_t word)
{
    return (((word & UINT64_C(0x7F7F7F7F7F7F7F7F)) + UINT64_C(0x7676767676767676)) | word) &
           UINT64_C(0x8080808080808080);
}

/* Tell what number eight digits are: the words of "Faster Unsigned Integer Parsing". */
static inline uint64_t of_digits(uint64_t word)
{
    word = word * 10 + (word >> 8);
    return (((word & UINT64_C(0x000000FF000000FF)) * UINT64_C(0x000F424000000064)) +
            (((word >> 16) & UINT64_C(0x000000FF000000FF)) * UINT64_C(0x0000271000000001))) >>
           32;
}

/* Count the digits before the first byte that is marked. */
static inline unsigned digits_before(uint64_t others)
{
    return (unsigned)__builtin_ctzll(others) / 8;
}

/* Tell what number the first digits of a word are, at most seven: they are read as eight, with zeros before them. */
static inline uint64_t of_first_digits(uint64_t word, unsigned count)
{
    return of_digits(word << 8 << (56 - 8 * count));
}

static const uint32_t TENS[] = {1, 10, 100, 1000, 10000, 100000, 1000000, 10000000};

/* Append the digits at `at` to a number, which wraps around if there are too many. Numbers differ in length, so a loop
 * over digits would end where no processor expects it. */
static inline const uint8_t *pass_digits(const uint8_t *at, const uint8_t *end, uint64_t *number)
{
    uint64_t found = *number;
    for (; end - at >= 8; at += 8) {
        uint64_t word = word_at(at), others = other_bytes(word);
        if (others) {
            unsigned count = digits_before(others);
            *number = found * TENS[count] + of_first_digits(word, count);
            return at + count;
        }
        found = found * 100000000 + of_digits(word);
    }
    for (; at < end && is_digit(*at); at++)
        found = found * 10 + (uint64_t)(*at - '0');
    *number = found;
    return at;
}

static const double EXACT_POWERS[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                                      1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
#define MOST_EXACT_POWER 22
#define MOST_EXACT (UINT64_C(1) << 53)
#define MOST_EXACT_DIGITS 15 /* that are below it whatever they are */

static inline uint64_t bits_of(double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* The wide way: false if the bits that it has do not tell how the number is rounded. */
static inline bool multiply(uint64_t significand, int power, uint64_t *bits)
{
    if (power < LEAST_POWER || power > GREATEST_POWER)
        return false;
    int zeros = __builtin_clzll(significand);
    significand <<= zeros;
    const uint64_t *ten = POWERS[power - LEAST_POWER];
    unsigned __int128 product = (unsigned __int128)significand * ten[0];
    uint64_t high = (uint64_t)(product >> 64), low = (uint64_t)product;
    if ((high & 0x1FF) == 0x1FF) {
        uint64_t more = (uint64_t)((unsigned __int128)significand * ten[1] >> 64);
        low += more;
        high += low < more;
    }
    if (low == UINT64_MAX && (power < -27 || power > 55))
        return false;
    int upper = (int)(high >> 63);
    uint64_t mantissa = high >> (upper + 9);
    int exponent = ((217706 * power) >> 16) + 63 + upper - zeros + 1023;
    if (low <= 1 && power >= -4 && power <= 23 && (mantissa & 3) == 1 && mantissa << (upper + 9) == high)
        mantissa &= ~UINT64_C(1); /* right between two floats: to the even one */
    mantissa = (mantissa + (mantissa & 1)) >> 1;
    if (mantissa >> 53) {
        mantissa >>= 1;
        exponent++;
    }
    *bits = (mantissa & ((UINT64_C(1) << 52) - 1)) | (uint64_t)exponent << 52;
    return true;
}

/* The exact way: false if it is none. */
static inline bool divide(uint64_t significand, int power, uint64_t *bits)
{
    if (significand > MOST_EXACT || power < -MOST_EXACT_POWER || power > MOST_EXACT_POWER)
        return false;
    double value = (double)significand;
    *bits = bits_of(power < 0 ? value / EXACT_POWERS[-power] : value * EXACT_POWERS[power]);
    return true;
}

/* Of 16 digits, some are below 2^53 and some are not, so the wide way is tried first. */
static inline bool to_float(uint64_t significand, ptrdiff_t digits, int power, bool is_negative, uint64_t *bits)
{
    if (significand == 0)
        *bits = 0;
    else if (digits > MOST_EXACT_DIGITS ? !multiply(significand, power, bits) && !divide(significand, power, bits)
                                        : !divide(significand, power, bits) && !multiply(significand, power, bits))
        return false;
    *bits |= (uint64_t)is_negative << 63;
    return true;
}

/* Read up to seven digits, a point and up to 15 more; the point may be missing. NULL if there are others. It looks at 24
 * bytes. */
static inline const uint8_t *pass_decimal(const uint8_t *at, uint64_t *number, unsigned *digits, unsigned *decimals)
{
    uint64_t word = word_at(at), others = other_bytes(word);
    *digits = others ? digits_before(others) : 0;
    *decimals = 0;
    if (*digits == 0)
        return NULL;
    uint64_t found = of_first_digits(word, *digits);
    at += *digits;
    if (*at == '.') {
        word = word_at(++at);
        others = other_bytes(word);
        if (!others) {
            found = found * 100000000 + of_digits(word);
            *decimals = 8;
            word = word_at(at + 8);
            others = other_bytes(word);
            if (!others)
                return NULL;
        }
        unsigned count = digits_before(others);
        found = found * TENS[count] + of_first_digits(word, count);
        *decimals += count;
        *digits += *decimals;
        at += *decimals;
    }
    *number = found;
    return at;
}

/* Read a float as `pass_decimal` does, if there are 32 bytes to look at. NULL if `read_number` has to read it. */
static inline const uint8_t *read_usual_float(const uint8_t *at, const uint8_t *end, uint64_t *bits)
{
    if (end - at < MOST_USUAL_BYTES)
        return NULL;
    bool is_negative = *at == '-';
    at += is_negative;
    unsigned digits, decimals;
    uint64_t significand;
    at = pass_decimal(at, &significand, &digits, &decimals);
    if (at == NULL || digits > MOST_DIGITS)
        return NULL;
    if (*at > '9')
        return NULL; /* an exponent or a suffix */
    if (digits > MOST_EXACT_DIGITS / 2 && significand != 0 && multiply(significand, -(int)decimals, bits)) {
        *bits |= (uint64_t)is_negative << 63;
        return at;
    }
    return to_float(significand, digits, -(int)decimals, is_negative, bits) ? at : NULL;
}

/* Read up to 18 digits and their `i`. NULL if `read_number` has to read the integer. */
static inline const uint8_t *read_usual_integer(const uint8_t *at, const uint8_t *end, uint64_t *bits)
{
    bool is_negative = *at == '-';
    const uint8_t *digits = at + is_negative;
    uint64_t found = 0;
    at = pass_digits(digits, end, &found);
    if (at == digits || at - digits >= MOST_DIGITS || at == end || *at != 'i')
        return NULL;
    *bits = is_negative ? UINT64_C(0) - found : found;
    return at + 1;
}

/* Read 19 digits, as nanoseconds of our days have, if there are 24 bytes to look at. NULL if `read_integer` has to read
 * the time. */
static inline const uint8_t *read_usual_time(const uint8_t *at, const uint8_t *end, int64_t *value)
{
    if (end - at < 24)
        return NULL;
    uint64_t first = word_at(at), second = word_at(at + 8), third = word_at(at + 16);
    if (other_bytes(first) | other_bytes(second) | ((other_bytes(third) & UINT32_MAX) ^ UINT32_C(0x80000000)))
        return NULL; /* of the third word, the fourth byte alone is no digit */
    uint64_t found = (of_digits(first) * 100000000 + of_digits(second)) * 1000 + of_first_digits(third, 3);
    if (found > INT64_MAX)
        return NULL;
    *value = (int64_t)found;
    return at + 19;
}

#endif
