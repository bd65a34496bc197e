/* Claims by what they claim, bytes by bytes, in the order of their numbers, which are above 0. */
#ifndef ARCPIPE_CLAIMS_H
#define ARCPIPE_CLAIMS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The most claims of a table, for which 31 bits are enough. */
#define MOST_CLAIMS ((size_t)1 << 30)

/* What is claimed: the bytes of a key, and of what it belongs to. The hash is of both, and nobody who sends keys can
   tell it. */
typedef struct {
    const uint8_t *owner, *key;
    uint32_t owner_bytes, key_bytes, hash;
} Identity;

typedef struct {
    long long number; /* below 0: it was removed */
    uint64_t body_bytes;
    size_t identity_at; /* those of the owner and then of the key, among the bytes of the table */
    uint32_t owner_bytes, key_bytes, hash, crc;
} Claim;

/* A new key reads one place of memory, which is in no cache: so both generations have one table, and the byte that mostly
   tells that a key is new is apart from all else. */
typedef struct {
    uint8_t *signs;   /* of each slot a part of the hash; 0 is a free slot. NULL before the first claim */
    uint32_t *places; /* of each slot that of its claim */
    size_t mask;      /* one less than the slots, which are a power of two, and at least half of them free */
    Claim *claims;
    size_t used; /* claims, with those that were removed */
    uint8_t *identities;
    size_t identity_bytes, identity_room;
} Claims;

/* Find the last claim of an identity, which stays where it is until the next change; NULL if there is none. The slot is
   for `add_claim`. */
const Claim *find_claim(const Claims *claims, Identity identity, size_t *slot);

/* Add a claim, which takes the place of an earlier one of its identity, whose slot was found after the last change;
   false, with nothing changed, if there is no memory or room. */
bool add_claim(Claims *claims, Identity identity, size_t slot, Claim claim);

/* Remove the claim of a number, if it is there. */
void remove_claim(Claims *claims, long long number);

/* Drop the first claims, and keep their memory for the next ones. */
void drop_claims(Claims *claims, size_t count);

/* Give the memory back. */
void free_claims(Claims *claims);

#endif
