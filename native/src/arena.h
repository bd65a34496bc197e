/* Memory that is taken piece by piece and given back all at once. */
#ifndef ARCPIPE_ARENA_H
#define ARCPIPE_ARENA_H

#include <stddef.h>

typedef struct ArenaBlock ArenaBlock;

typedef struct {
    ArenaBlock *blocks; /* the newest first */
    size_t left;        /* bytes that the newest one still has */
    size_t next_bytes;  /* of the next block: they grow, so that a small body takes little */
} Arena;

/* Return `bytes` of memory, aligned for any number; NULL if there is none. */
void *arena_take(Arena *arena, size_t bytes);

/* Do the same, but take nothing: the next `arena_take` of as many bytes returns the same memory, and does not fail. */
void *arena_room(Arena *arena, size_t bytes);

/* Give everything back but one block. */
void arena_clear(Arena *arena);

/* Give everything back. */
void arena_free(Arena *arena);

#endif
