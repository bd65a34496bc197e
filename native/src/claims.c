#include "claims.h"

#include <Python.h>
#include <stdlib.h>
#include <string.h>

/* Slots of a table with its first claim, and bytes for identities. */
#define FEWEST_SLOTS ((size_t)64)
#define FEWEST_BYTES ((size_t)4096)

/* The part of a hash that does not choose the slot. */
static uint8_t sign_of(uint32_t hash)
{
    return (uint8_t)(hash >> 24 | 1);
}

static bool is_claim_of(const Claims *claims, const Claim *claim, Identity identity)
{
    const uint8_t *claimed = claims->identities + claim->identity_at;
    return claim->hash == identity.hash && claim->owner_bytes == identity.owner_bytes &&
           claim->key_bytes == identity.key_bytes && memcmp(claimed, identity.owner, identity.owner_bytes) == 0 &&
           memcmp(claimed + identity.owner_bytes, identity.key, identity.key_bytes) == 0;
}

/* Find the slot of an identity: its own, or the free one where it would be. There are slots. */
static size_t slot_of(const Claims *claims, Identity identity)
{
    uint8_t sign = sign_of(identity.hash);
    size_t at = identity.hash & claims->mask;
    for (; claims->signs[at] != 0; at = (at + 1) & claims->mask)
        if (claims->signs[at] == sign && is_claim_of(claims, &claims->claims[claims->places[at]], identity))
            break;
    return at;
}

static void take_slot(Claims *claims, size_t at, size_t place)
{
    claims->signs[at] = sign_of(claims->claims[place].hash);
    claims->places[at] = (uint32_t)place;
}

const Claim *find_claim(const Claims *claims, Identity identity, size_t *slot)
{
    *slot = 0;
    if (claims->signs == NULL)
        return NULL;
    *slot = slot_of(claims, identity);
    return claims->signs[*slot] == 0 ? NULL : &claims->claims[claims->places[*slot]];
}

/* Give each claim a slot; all slots are free. */
static void fill_slots(Claims *claims)
{
    for (size_t place = 0; place < claims->used; place++) {
        if (claims->claims[place].number < 0)
            continue;
        size_t at = claims->claims[place].hash & claims->mask;
        while (claims->signs[at] != 0)
            at = (at + 1) & claims->mask;
        take_slot(claims, at, place);
    }
}

/* Have twice the slots; false, with nothing changed, if there is no memory or room. */
static bool grow_slots(Claims *claims)
{
    size_t count = claims->signs == NULL ? FEWEST_SLOTS : 2 * (claims->mask + 1);
    if (count / 2 > MOST_CLAIMS)
        return false;
    Claim *moved = PyMem_Realloc(claims->claims, count / 2 * sizeof(Claim));
    if (moved == NULL)
        return false;
    claims->claims = moved;
    uint8_t *signs = PyMem_Calloc(count, sizeof(uint8_t));
    uint32_t *places = PyMem_Calloc(count, sizeof(uint32_t));
    if (signs == NULL || places == NULL) {
        PyMem_Free(signs);
        PyMem_Free(places);
        return false;
    }
    PyMem_Free(claims->signs);
    PyMem_Free(claims->places);
    claims->signs = signs;
    claims->places = places;
    claims->mask = count - 1;
    fill_slots(claims);
    return true;
}

/* Make room for the bytes of an identity; false, with nothing changed, if there is no memory. */
static bool make_room(Claims *claims, size_t size)
{
    size_t room = claims->identity_room < FEWEST_BYTES ? FEWEST_BYTES : claims->identity_room;
    while (room - claims->identity_bytes < size)
        room *= 2;
    if (room == claims->identity_room)
        return true;
    uint8_t *moved = PyMem_Realloc(claims->identities, room);
    if (moved == NULL)
        return false;
    claims->identities = moved;
    claims->identity_room = room;
    return true;
}

bool add_claim(Claims *claims, Identity identity, size_t slot, Claim claim)
{
    if (claims->signs == NULL || 2 * claims->used > claims->mask) {
        if (!grow_slots(claims))
            return false;
        slot = slot_of(claims, identity);
    }
    if (!make_room(claims, (size_t)identity.owner_bytes + identity.key_bytes))
        return false;
    if (claims->signs[slot] != 0)
        claims->claims[claims->places[slot]].number *= -1;
    claim.identity_at = claims->identity_bytes;
    claim.owner_bytes = identity.owner_bytes;
    claim.key_bytes = identity.key_bytes;
    claim.hash = identity.hash;
    uint8_t *claimed = claims->identities + claims->identity_bytes;
    memcpy(claimed, identity.owner, identity.owner_bytes);
    memcpy(claimed + identity.owner_bytes, identity.key, identity.key_bytes);
    claims->identity_bytes += (size_t)identity.owner_bytes + identity.key_bytes;
    claims->claims[claims->used] = claim;
    take_slot(claims, slot, claims->used++);
    return true;
}

/* Find the place of the first claim whose number is not below this one; removed ones have theirs, below 0. */
static size_t place_of(const Claims *claims, long long number)
{
    size_t low = 0, high = claims->used;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (llabs(claims->claims[middle].number) < number)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

void remove_claim(Claims *claims, long long number)
{
    size_t place = place_of(claims, number), mask = claims->mask;
    if (place == claims->used || claims->claims[place].number != number)
        return;
    claims->claims[place].number = -number;
    size_t gap = claims->claims[place].hash & mask;
    while (claims->places[gap] != place)
        gap = (gap + 1) & mask;
    /* Those after it that could not be where it was come nearer. */
    for (size_t at = (gap + 1) & mask; claims->signs[at] != 0; at = (at + 1) & mask) {
        size_t first = claims->claims[claims->places[at]].hash & mask;
        if (((at - first) & mask) >= ((at - gap) & mask)) {
            take_slot(claims, gap, claims->places[at]);
            gap = at;
        }
    }
    claims->signs[gap] = 0;
}

void drop_claims(Claims *claims, size_t count)
{
    if (count == 0)
        return;
    size_t bytes = count < claims->used ? claims->claims[count].identity_at : claims->identity_bytes;
    claims->used -= count;
    claims->identity_bytes -= bytes;
    memmove(claims->claims, claims->claims + count, claims->used * sizeof(Claim));
    memmove(claims->identities, claims->identities + bytes, claims->identity_bytes);
    for (size_t place = 0; place < claims->used; place++)
        claims->claims[place].identity_at -= bytes;
    memset(claims->signs, 0, claims->mask + 1);
    fill_slots(claims);
}

void free_claims(Claims *claims)
{
    PyMem_Free(claims->signs);
    PyMem_Free(claims->places);
    PyMem_Free(claims->claims);
    PyMem_Free(claims->identities);
    *claims = (Claims){0};
}
