/* The CRC-32 of zlib, which the WAL has. */
#ifndef ARCPIPE_CHECKSUM_H
#define ARCPIPE_CHECKSUM_H

#include <stddef.h>
#include <stdint.h>

/* Make the tables; needed once, before any checksum. */
void prepare_crc32(void);

/* Return the CRC-32 of all bytes of which `crc` is that of those before these; 0 is that of none. For short pieces:
   isal is faster for long ones. */
uint32_t add_to_crc32(uint32_t crc, const uint8_t *data, size_t size);

#endif
