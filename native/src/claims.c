#include "claims.h"

#include <Python.h>
#include <string.h>

/* Slots of a table with its first claim, and bytes for identities. */
#define FEWEST_SLOTS ((size_t)64)
#define FEWEST_BYTES ((size_t)4096)

/* Find the slot of an identity: its own, or the free one where it would be. There are slots. */
static size_t slot_of(const Claims *claims, Identity identity)
{
    size_t at = identity.hash & claims->mask;
    for (; claims->slots[at].place != 0; at = (at + 1) & claims->mask) {
        if (claims->slots[at].hash != identity.hash)
            continue;
        const Claim *claim = &claims->claims[claims->slots[at].place - 1];
        if (claim->identity_bytes == identity.size &&
            memcmp(claims->identities + claim->identity_at, identity.data, identity.size) == 0)
            break;
    }
    return at;
}

const Claim *find_claim(const Claims *claims, Identity identity)
{
    if (claims->used == 0)
        return NULL;
    uint32_t place = claims->slots[slot_of(claims, identity)].place;
    return place == 0 ? NULL : &claims->claims[place - 1];
}

/* Have twice the slots; false, with nothing changed, if there is no memory or room. */
static bool grow_slots(Claims *claims)
{
    size_t count = claims->slots == NULL ? FEWEST_SLOTS : 2 * (claims->mask + 1);
    if (count / 2 > MOST_CLAIMS)
        return false;
    Claim *moved = PyMem_Realloc(claims->claims, count / 2 * sizeof(Claim));
    if (moved == NULL)
        return false;
    claims->claims = moved;
    Slot *slots = PyMem_Calloc(count, sizeof(Slot));
    if (slots == NULL)
        return false;
    for (size_t from = 0; claims->slots != NULL && from <= claims->mask; from++) {
        if (claims->slots[from].place == 0)
            continue;
        size_t at = claims->slots[from].hash & (count - 1);
        while (slots[at].place != 0)
            at = (at + 1) & (count - 1);
        slots[at] = claims->slots[from];
    }
    PyMem_Free(claims->slots);
    claims->slots = slots;
    claims->mask = count - 1;
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

bool add_claim(Claims *claims, Identity identity, Claim claim)
{
    if (claims->slots == NULL || 2 * claims->used > claims->mask)
        if (!grow_slots(claims))
            return false;
    if (!make_room(claims, identity.size))
        return false;
    memcpy(claims->identities + claims->identity_bytes, identity.data, identity.size);
    claim.identity_at = claims->identity_bytes;
    claim.identity_bytes = identity.size;
    claims->identity_bytes += identity.size;
    claims->claims[claims->used++] = claim;
    claims->slots[slot_of(claims, identity)] = (Slot){.hash = identity.hash, .place = (uint32_t)claims->used};
    return true;
}

void remove_claim(Claims *claims, Identity identity)
{
    if (claims->used == 0)
        return;
    size_t mask = claims->mask, gap = slot_of(claims, identity);
    if (claims->slots[gap].place == 0)
        return;
    /* Those after it that could not be where it was come nearer. */
    for (size_t at = (gap + 1) & mask; claims->slots[at].place != 0; at = (at + 1) & mask) {
        size_t first = claims->slots[at].hash & mask;
        if (((at - first) & mask) >= ((at - gap) & mask)) {
            claims->slots[gap] = claims->slots[at];
            gap = at;
        }
    }
    claims->slots[gap].place = 0;
}

void clear_claims(Claims *claims)
{
    if (claims->used != 0)
        memset(claims->slots, 0, (claims->mask + 1) * sizeof(Slot));
    claims->used = 0;
    claims->identity_bytes = 0;
}

void free_claims(Claims *claims)
{
    PyMem_Free(claims->slots);
    PyMem_Free(claims->claims);
    PyMem_Free(claims->identities);
    *claims = (Claims){0};
}
