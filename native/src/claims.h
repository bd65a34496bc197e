/* Claims by what they claim, bytes by bytes: a table that grows, and loses all at once. */
#ifndef ARCPIPE_CLAIMS_H
#define ARCPIPE_CLAIMS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The most claims of a table, for which 31 bits are enough. */
#define MOST_CLAIMS ((size_t)1 << 30)

typedef struct {
    long long number;
    uint64_t body_bytes;
    size_t identity_at; /* its bytes among those of the table */
    uint32_t identity_bytes, crc;
} Claim;

/* What is claimed. The hash is of these bytes, and nobody who sends some can tell it. */
typedef struct {
    const uint8_t *data;
    uint32_t size, hash;
} Identity;

typedef struct {
    uint32_t hash, place; /* the place is one more than that among the claims; 0 is a free slot */
} Slot;

typedef struct {
    Slot *slots; /* a power of two, at least half of them free; NULL before the first claim */
    size_t mask; /* one less than the slots */
    Claim *claims;
    size_t used; /* claims since the last `clear_claims`, with those that were removed */
    uint8_t *identities;
    size_t identity_bytes, identity_room;
} Claims;

/* Find a claim; NULL if there is none. It stays where it is until the next change. */
const Claim *find_claim(const Claims *claims, Identity identity);

/* Add a claim of what is not claimed yet; false, with nothing changed, if there is no memory or room. */
bool add_claim(Claims *claims, Identity identity, Claim claim);

/* Remove a claim, if there is one. */
void remove_claim(Claims *claims, Identity identity);

/* Remove all claims, and keep the memory for the next ones. */
void clear_claims(Claims *claims);

/* Give the memory back. */
void free_claims(Claims *claims);

#endif
