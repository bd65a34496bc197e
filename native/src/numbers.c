/* Digits become a float in one of three ways, each of which rounds correctly, as Python's `float()` does:
 *
 *   exact   Up to 2^53, times or divided by a power of ten that a float has exactly (Clinger, 1990).
 *   wide    Up to 19 digits, times 128 bits of a power of ten (Lemire, 2021; `powers.h`).
 *   slow    `strtod_l` of the C library, which takes as many digits as it gets.
 */
#define _GNU_SOURCE /* for strtod_l */

#include "numbers.h"

#include <locale.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "powers.h"

#define MOST_SLOW_BYTES 128   /* of a number for the slow way: longer ones are not taken */
#define MOST_USUAL_BYTES 32   /* that `read_usual_float` looks at */
#define MOST_DIGITS 19        /* of a significand that fits into 64 bits, whatever they are */
#define MOST_EXPONENT 1000000 /* where an exponent stops to count: no float reaches there */

static locale_t c_locale;

bool prepare_numbers(void)
{
    if (c_locale == (locale_t)0)
        c_locale = newlocale(LC_ALL_MASK, "C", (locale_t)0);
    return c_locale != (locale_t)0;
}

static inline bool is_digit(uint8_t byte)
{
    return (uint8_t)(byte - '0') <= 9;
}

/* Eight bytes, the first one lowest, with '0' to '9' as 0 to 9. */
static inline uint64_t word_at(const uint8_t *at)
{
    uint64_t word;
    memcpy(&word, at, sizeof word);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    word = __builtin_bswap64(word);
#endif
    return word ^ UINT64_C(0x3030303030303030);
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

/* Append the digits at `at` to a number, which wraps around if there are too many. Numbers differ in length, so a loop over
 * digits would end where no processor expects it. */
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

/* Read the number that digits are, if it has 64 bits. `number` is that of the first 19 of them, or of all. */
static bool fits(const uint8_t *digits, const uint8_t *end, uint64_t *number)
{
    if (end - digits <= MOST_DIGITS)
        return true;
    uint64_t found = 0;
    for (; digits < end; digits++)
        if (__builtin_mul_overflow(found, UINT64_C(10), &found) ||
            __builtin_add_overflow(found, (uint64_t)(*digits - '0'), &found))
            return false;
    *number = found;
    return true;
}

static bool to_signed(uint64_t magnitude, bool is_negative, int64_t *value)
{
    if (magnitude > (uint64_t)INT64_MAX + is_negative)
        return false;
    uint64_t bits = is_negative ? UINT64_C(0) - magnitude : magnitude;
    memcpy(value, &bits, sizeof bits);
    return true;
}

const uint8_t *read_integer(const uint8_t *at, const uint8_t *end, int64_t *value)
{
    bool is_negative = at < end && *at == '-';
    const uint8_t *digits = at + is_negative;
    uint64_t magnitude = 0;
    at = pass_digits(digits, end, &magnitude);
    if (at == digits || !fits(digits, at, &magnitude) || !to_signed(magnitude, is_negative, value))
        return NULL;
    return at;
}

static const double EXACT_POWERS[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                                      1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
#define MOST_EXACT_POWER 22
#define MOST_EXACT (UINT64_C(1) << 53)
#define MOST_EXACT_DIGITS 15 /* that are below it whatever they are */

static uint64_t bits_of(double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* The wide way: false if the bits that it has do not tell how the number is rounded. */
static inline __attribute__((always_inline)) bool multiply(uint64_t significand, int power, uint64_t *bits)
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

/* The slow way: false if the number is too long, or too large for a float. */
static bool convert(const uint8_t *at, const uint8_t *end, uint64_t *bits)
{
    char copy[MOST_SLOW_BYTES + 1];
    size_t size = (size_t)(end - at);
    if (size > MOST_SLOW_BYTES)
        return false;
    memcpy(copy, at, size);
    copy[size] = '\0';
    char *stop;
    double value = strtod_l(copy, &stop, c_locale);
    *bits = bits_of(value);
    return stop == copy + size && (*bits >> 52 & 0x7FF) != 0x7FF;
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
static bool to_float(uint64_t significand, ptrdiff_t digits, int power, bool is_negative, uint64_t *bits)
{
    if (significand == 0)
        *bits = 0;
    else if (digits > MOST_EXACT_DIGITS ? !multiply(significand, power, bits) && !divide(significand, power, bits)
                                        : !divide(significand, power, bits) && !multiply(significand, power, bits))
        return false;
    *bits |= (uint64_t)is_negative << 63;
    return true;
}

/* Read `[eE][-+]?[0-9]+` at `at`; NULL if it is not there. */
static const uint8_t *read_exponent(const uint8_t *at, const uint8_t *end, int *exponent)
{
    at++;
    bool is_negative = at < end && *at == '-';
    at += at < end && (*at == '-' || *at == '+');
    const uint8_t *digits = at;
    int found = 0;
    for (; at < end && is_digit(*at); at++)
        if (found < MOST_EXPONENT)
            found = found * 10 + (*at - '0');
    *exponent = is_negative ? -found : found;
    return at == digits ? NULL : at;
}

const uint8_t *read_usual_float(const uint8_t *at, const uint8_t *end, uint64_t *bits)
{
    if (end - at < MOST_USUAL_BYTES)
        return NULL;
    bool is_negative = *at == '-';
    at += is_negative;
    uint64_t word = word_at(at), others = other_bytes(word);
    unsigned digits = others ? digits_before(others) : 0;
    if (digits == 0)
        return NULL;
    uint64_t significand = of_first_digits(word, digits);
    at += digits;
    unsigned decimals = 0;
    if (*at == '.') {
        word = word_at(++at);
        others = other_bytes(word);
        if (!others) {
            significand = significand * 100000000 + of_digits(word);
            decimals = 8;
            word = word_at(at + 8);
            others = other_bytes(word);
            if (!others)
                return NULL;
        }
        unsigned count = digits_before(others);
        significand = significand * TENS[count] + of_first_digits(word, count);
        decimals += count;
        digits += decimals;
        at += decimals;
        if (digits > MOST_DIGITS)
            return NULL;
    }
    if (*at > '9')
        return NULL; /* an exponent or a suffix */
    if (digits > MOST_EXACT_DIGITS / 2 && significand != 0 && multiply(significand, -(int)decimals, bits)) {
        *bits |= (uint64_t)is_negative << 63;
        return at;
    }
    return to_float(significand, digits, -(int)decimals, is_negative, bits) ? at : NULL;
}

const uint8_t *read_usual_time(const uint8_t *at, const uint8_t *end, int64_t *value)
{
    if (end - at < 24)
        return NULL;
    uint64_t first = word_at(at), second = word_at(at + 8), third = word_at(at + 16);
    if (other_bytes(first) | other_bytes(second) | ((other_bytes(third) & UINT64_C(0xFFFFFFFF)) ^ UINT64_C(0x80000000)))
        return NULL;
    uint64_t found = (of_digits(first) * 100000000 + of_digits(second)) * 1000 + of_first_digits(third, 3);
    return to_signed(found, false, value) ? at + 19 : NULL;
}

const uint8_t *read_number(const uint8_t *at, const uint8_t *end, Type *type, uint64_t *bits, size_t *slow)
{
    const uint8_t *start = at;
    bool is_negative = *at == '-';
    const uint8_t *digits = at + is_negative;
    uint64_t significand = 0;
    at = pass_digits(digits, end, &significand);
    ptrdiff_t count = at - digits;
    if (at < end && (*at == 'i' || *at == 'u') && count) {
        int64_t value;
        if (!fits(digits, at, &significand))
            return NULL;
        *type = *at == 'i' ? INTEGER : UNSIGNED;
        *bits = significand;
        if (*type == UNSIGNED)
            return is_negative ? NULL : at + 1;
        if (!to_signed(significand, is_negative, &value))
            return NULL;
        *bits = (uint64_t)value;
        return at + 1;
    }
    *type = FLOAT;
    int power = 0;
    if (at < end && *at == '.') {
        const uint8_t *fraction = at + 1;
        at = pass_digits(fraction, end, &significand);
        count += at - fraction;
        power = (int)(fraction - at);
    }
    if (!count)
        return NULL;
    if (at < end && (*at | 0x20) == 'e') {
        int exponent;
        at = read_exponent(at, end, &exponent);
        if (at == NULL)
            return NULL;
        power += exponent;
    }
    if (count <= MOST_DIGITS && to_float(significand, count, power, is_negative, bits))
        return at;
    ++*slow;
    return convert(start, at, bits) ? at : NULL;
}
