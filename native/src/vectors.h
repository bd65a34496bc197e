/* 16 bytes at a time, where each processor of the architecture has it. Whoever uses it has another way for the others.
 * `-DARCPIPE_PORTABLE` takes that one everywhere: the tests do. */
#ifndef ARCPIPE_VECTORS_H
#define ARCPIPE_VECTORS_H

#if defined(__SSE2__) && !defined(ARCPIPE_PORTABLE)
#include <emmintrin.h>
#include <stdint.h>

#define HAS_VECTORS
#define VECTOR_BYTES 16

typedef __m128i Vector;

static inline Vector vector_at(const uint8_t *at)
{
    return _mm_loadu_si128((const __m128i *)at);
}

/* Mark the bytes that are the same in both. */
static inline Vector are_same(Vector one, Vector other)
{
    return _mm_cmpeq_epi8(one, other);
}

static inline Vector is_byte(Vector bytes, char byte)
{
    return _mm_cmpeq_epi8(bytes, _mm_set1_epi8(byte));
}

static inline Vector any_of(Vector one, Vector other)
{
    return _mm_or_si128(one, other);
}

/* The marks as bits, that of the first byte lowest. */
static inline unsigned bits_of_vector(Vector marks)
{
    return (unsigned)_mm_movemask_epi8(marks);
}

#endif

#endif
