/* BLAKE2b with a digest of 16 bytes and no key (RFC 7693), as `hashlib.blake2b(data, digest_size=16)`. */
#ifndef ARCPIPE_BLAKE2B_H
#define ARCPIPE_BLAKE2B_H

#include <stddef.h>
#include <stdint.h>

#define BLAKE2B_BYTES 16

/* Hash bytes into 16 others. */
void blake2b(const uint8_t *data, size_t size, uint8_t *digest);

#endif
