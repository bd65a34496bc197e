#include "arena.h"

#include <stdlib.h>

#define FIRST_BYTES ((size_t)4 * 1024)
#define MOST_BYTES ((size_t)256 * 1024) /* of a block, unless one piece is larger */
#define ALIGNMENT ((size_t)16)

struct ArenaBlock {
    ArenaBlock *older;
    size_t bytes;
    _Alignas(16) unsigned char data[];
};

static inline size_t aligned(size_t bytes)
{
    return (bytes + ALIGNMENT - 1) & ~(ALIGNMENT - 1);
}

void *arena_room(Arena *arena, size_t bytes)
{
    bytes = aligned(bytes);
    if (bytes > arena->left) {
        size_t size = arena->next_bytes < FIRST_BYTES ? FIRST_BYTES : arena->next_bytes;
        if (size < bytes)
            size = bytes;
        ArenaBlock *block = malloc(sizeof(ArenaBlock) + size);
        if (block == NULL)
            return NULL;
        block->older = arena->blocks;
        block->bytes = size;
        arena->blocks = block;
        arena->left = size;
        arena->next_bytes = size >= MOST_BYTES / 2 ? MOST_BYTES : 2 * size;
    }
    return arena->blocks->data + (arena->blocks->bytes - arena->left);
}

void *arena_take(Arena *arena, size_t bytes)
{
    void *piece = arena_room(arena, bytes);
    if (piece != NULL)
        arena->left -= aligned(bytes);
    return piece;
}

void arena_clear(Arena *arena)
{
    if (arena->blocks == NULL)
        return;
    ArenaBlock *block = arena->blocks->older;
    while (block != NULL) {
        ArenaBlock *older = block->older;
        free(block);
        block = older;
    }
    arena->blocks->older = NULL;
    arena->left = arena->blocks->bytes;
}

void arena_free(Arena *arena)
{
    arena_clear(arena);
    free(arena->blocks);
    arena->blocks = NULL;
    arena->left = 0;
}
