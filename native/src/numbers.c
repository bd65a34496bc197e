/* Numbers of any form: what `digits.h` does not read in one go. */
#define _GNU_SOURCE /* for strtod_l */

#include "numbers.h"

#include <locale.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "digits.h"

#define MOST_SLOW_BYTES 128   /* of a number for the slow way: longer ones are not taken */
#define MOST_EXPONENT 1000000 /* where an exponent stops to count: no float reaches there */

static locale_t c_locale;

bool prepare_numbers(void)
{
    if (c_locale == (locale_t)0)
        c_locale = newlocale(LC_ALL_MASK, "C", (locale_t)0);
    return c_locale != (locale_t)0;
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
