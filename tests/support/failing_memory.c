/* Memory that ends: after `allocations_left` more allocations there is none; below 0 there is always some. The kernel is
 * compiled with these in place of `malloc` and `realloc`. */
#undef malloc
#undef realloc

#include <stdlib.h>

__attribute__((visibility("default"))) int allocations_left = -1;

static int is_there(void)
{
    if (allocations_left > 0)
        allocations_left--;
    return allocations_left != 0;
}

void *failing_malloc(size_t bytes)
{
    return is_there() ? malloc(bytes) : NULL;
}

void *failing_realloc(void *memory, size_t bytes)
{
    return is_there() ? realloc(memory, bytes) : NULL;
}
