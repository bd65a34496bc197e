/* Numbers of line protocol. Each reader returns the offset after the number, or NULL if it does not take it: it is none,
 * or it is out of range. */
#ifndef ARCPIPE_NUMBERS_H
#define ARCPIPE_NUMBERS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum { NONE, FLOAT, INTEGER, UNSIGNED, TEXT, BOOL } Type;

/* Read digits with an optional `-`: 64 bits. */
const uint8_t *read_integer(const uint8_t *at, const uint8_t *end, int64_t *value);

/* Read a field's number: a float, or an integer with its suffix. `bits` are those of the value. `slow` counts numbers that
 * took the slow way, some microseconds each. */
const uint8_t *read_number(const uint8_t *at, const uint8_t *end, Type *type, uint64_t *bits, size_t *slow);

/* Prepare for the numbers that take the slow way; false if that cannot be. */
bool prepare_numbers(void);

#endif
