/* Headers and texts in MessagePack, each the shortest that fits. */
#ifndef ARCPIPE_PACKING_H
#define ARCPIPE_PACKING_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define HEADER_BYTES 5 /* of an array, map or text, at most */

static inline uint8_t *put_be16(uint8_t *to, uint16_t value)
{
    to[0] = (uint8_t)(value >> 8);
    to[1] = (uint8_t)value;
    return to + 2;
}

static inline uint8_t *put_be32(uint8_t *to, uint32_t value)
{
    to = put_be16(to, (uint16_t)(value >> 16));
    return put_be16(to, (uint16_t)value);
}

/* Put the shortest header of an array or a map. */
static inline uint8_t *put_count(uint8_t *to, size_t count, uint8_t few, uint8_t many)
{
    if (count < 16) {
        *to = (uint8_t)(few | count);
        return to + 1;
    }
    *to = count < 0x10000 ? many : many + 1;
    return count < 0x10000 ? put_be16(to + 1, (uint16_t)count) : put_be32(to + 1, (uint32_t)count);
}

static inline uint8_t *put_array(uint8_t *to, size_t count)
{
    return put_count(to, count, 0x90, 0xDC);
}

static inline uint8_t *put_map(uint8_t *to, size_t count)
{
    return put_count(to, count, 0x80, 0xDE);
}

/* Put the header of a text of less than 2^16 bytes. */
static inline uint8_t *put_size(uint8_t *to, size_t size)
{
    if (size < 32) {
        *to = (uint8_t)(0xA0 | size);
        return to + 1;
    }
    if (size < 0x100) {
        to[0] = 0xD9;
        to[1] = (uint8_t)size;
        return to + 2;
    }
    *to = 0xDA;
    return put_be16(to + 1, (uint16_t)size);
}

static inline uint8_t *put_text(uint8_t *to, const void *text, size_t size)
{
    to = put_size(to, size);
    memcpy(to, text, size);
    return to + size;
}

/* Count the bytes of the header of an array or a map. */
static inline size_t count_bytes(size_t count)
{
    return count < 16 ? 1 : count < 0x10000 ? 3 : 5;
}

/* Count the bytes of a text of less than 2^16. */
static inline size_t text_bytes(size_t size)
{
    return size + (size < 32 ? 1 : size < 0x100 ? 2 : 3);
}

#endif
