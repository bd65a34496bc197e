/* The shapes of lines: found by the bytes of their keys, and made once their names are known to be plain. */
#include <string.h>

#include "lines.h"
#include "texts.h"

#define FIRST_PLACES 64
#define MOST_CHAINED 64     /* shapes in one place of the table: a body with more has been made for that */
#define MOST_PROBES 64      /* places that are tried for a name, for the same reason */
#define MOST_NAME_BYTES 256 /* as `codec.columns.MAX_NAME_BYTES` */

uint64_t hash_seed;

static uint64_t hash_line(const Lines *lines, const Line *line)
{
    uint64_t hash = mix(hash_seed, line->tags << 1 | line->timed);
    for (uint32_t number = 0; number <= line->count; number++) {
        const Key *key = &lines->keys[number];
        hash = hash_of(key->text, key->size, hash + key->type);
    }
    return hash;
}

static bool is_of(const Lines *lines, const Line *line, const Shape *shape)
{
    if (shape->count != line->count || shape->tags != line->tags || shape->timed != line->timed)
        return false;
    for (uint32_t number = 0; number <= line->count; number++) {
        const Key *key = &lines->keys[number], *other = &shape->keys[number];
        if (key->size != other->size || key->type != other->type || !is_same(key->text, other->text, key->size))
            return false;
    }
    return true;
}

/* Tell whether a name may be that of a measurement or column, as `codec.columns` does. It is UTF-8. */
static bool is_plain(const Name *name)
{
    if (name->size < 1 || name->size > MOST_NAME_BYTES)
        return false;
    for (uint32_t at = 0; at < name->size; at++) {
        uint8_t byte = name->text[at];
        if (byte < 0x20 || byte == 0x7F || (byte == 0xC2 && name->text[at + 1] < 0xA0))
            return false;
    }
    return true;
}

/* Tell the characters whose escapes are dropped in the key of this number. */
static unsigned escaped_in(const Lines *lines, uint32_t number, uint32_t tags)
{
    if (lines->pairs)
        return COMMA | SPACE | BACKSLASH | (number ? EQUALS : 0);
    return COMMA | SPACE | EQUALS | (number == 0 || number > tags ? QUOTE : 0);
}

static bool name_key(Lines *lines, const Shape *shape, uint32_t number)
{
    const Key *key = &shape->keys[number];
    Name *name = &shape->names[number];
    *name = (Name){key->text, key->size, false};
    if (key->escaped) {
        uint8_t *text = arena_take(&lines->arena, key->size);
        if (text == NULL)
            return false;
        name->size = (uint32_t)unescape(key->text, key->size, escaped_in(lines, number, shape->tags), text);
        name->text = text;
    }
    return true;
}

/* Names by their hash: the numbers of their keys, 0 where there is none. */
typedef struct {
    const Shape *shape;
    uint32_t *numbers;
    size_t places;
} NameSet;

/* Find a name, or the place where it would be; NULL if many others have taken it. */
static uint32_t *find_name(const NameSet *set, const uint8_t *text, uint32_t size)
{
    uint64_t hash = hash_of(text, size, hash_seed);
    for (size_t probe = 0; probe < MOST_PROBES; probe++) {
        uint32_t *number = &set->numbers[(hash + probe) & (set->places - 1)];
        const Name *name = &set->shape->names[*number];
        if (*number == 0 || (name->size == size && is_same(name->text, text, size)))
            return number;
    }
    return NULL;
}

static bool is_time(const uint8_t *text, uint32_t size)
{
    return size == 4 && memcmp(text, "time", 4) == 0;
}

/* Tell whether the column of a field that clashes is the first one of `codec.columns.field_column_names`. */
static bool is_suffix_free(const NameSet *set, const Name *name)
{
    uint8_t text[MOST_NAME_BYTES + 6];
    memcpy(text, name->text, name->size);
    memcpy(text + name->size, "_field", 6);
    const uint32_t *number = find_name(set, text, name->size + 6);
    return number != NULL && *number == 0;
}

/* Tell whether no tag and no field is there twice, and no tag is called as the time; mark fields that clash. */
static bool are_columns(const NameSet *set)
{
    const Shape *shape = set->shape;
    bool any = false;
    for (uint32_t number = 1; number <= shape->count; number++) {
        Name *name = &shape->names[number];
        uint32_t *found = find_name(set, name->text, name->size);
        bool is_field = number > shape->tags;
        if (found == NULL || (*found != 0 && !(is_field && *found <= shape->tags)))
            return false;
        name->clashes = *found != 0 || is_time(name->text, name->size);
        if (name->clashes && !is_field)
            return false;
        any |= name->clashes;
        *found = number; /* perhaps in place of a tag, so that another field of this name is noticed */
    }
    for (uint32_t number = shape->tags + 1; any && number <= shape->count; number++)
        if (shape->names[number].clashes && !is_suffix_free(set, &shape->names[number]))
            return false;
    return true;
}

/* Name the columns of a shape; it becomes odd if they are not plain. False if there is no memory. */
static bool name_columns(Lines *lines, Shape *shape)
{
    for (uint32_t number = 0; number <= shape->count; number++) {
        if (!name_key(lines, shape, number))
            return false;
        shape->odd = shape->odd || !is_plain(&shape->names[number]);
    }
    if (shape->odd)
        return true;
    NameSet set = {shape, NULL, 8};
    while (set.places < 2 * (size_t)shape->count)
        set.places *= 2;
    set.numbers = arena_take(&lines->arena, set.places * sizeof *set.numbers);
    if (set.numbers == NULL)
        return false;
    memset(set.numbers, 0, set.places * sizeof *set.numbers);
    shape->odd = !are_columns(&set);
    return true;
}

static Shape *make_shape(Lines *lines, const Line *line, uint64_t hash)
{
    size_t keys_bytes = (line->count + 1) * sizeof(Key);
    Shape *shape = arena_take(&lines->arena, sizeof *shape);
    Key *keys = arena_take(&lines->arena, keys_bytes);
    Name *names = arena_take(&lines->arena, (line->count + 1) * sizeof *names);
    if (shape == NULL || keys == NULL || names == NULL)
        return NULL;
    memcpy(keys, lines->keys, keys_bytes);
    *shape = (Shape){
        .hash = hash, .keys = keys, .names = names, .count = line->count, .tags = line->tags, .timed = line->timed};
    shape->follower = shape;
    return name_columns(lines, shape) ? shape : NULL;
}

/* Make the table larger, or make it; false if there is no memory. */
static bool grow_table(Lines *lines)
{
    size_t places = lines->places ? 4 * lines->places : FIRST_PLACES;
    Shape **table = arena_take(&lines->arena, places * sizeof *table);
    if (table == NULL)
        return false;
    memset(table, 0, places * sizeof *table);
    for (Shape *shape = lines->oldest; shape != NULL; shape = shape->newer) {
        Shape **place = &table[shape->hash & (places - 1)];
        shape->chained = *place;
        *place = shape;
    }
    lines->table = table;
    lines->places = places;
    return true;
}

Shape *find_shape(Lines *lines, const Line *line)
{
    uint64_t hash = hash_line(lines, line);
    if (lines->shapes >= lines->places && !grow_table(lines))
        return lines->no_memory = true, NULL;
    Shape **place = &lines->table[hash & (lines->places - 1)];
    size_t chained = 0;
    for (Shape *shape = *place; shape != NULL; shape = shape->chained, chained++)
        if (shape->hash == hash && is_of(lines, line, shape))
            return shape;
    if (lines->shapes >= MOST_SHAPES)
        return lines->is_full = true, NULL;
    if (chained >= MOST_CHAINED)
        return NULL;
    Shape *shape = make_shape(lines, line, hash);
    if (shape == NULL)
        return lines->no_memory = true, NULL;
    shape->chained = *place;
    *place = shape;
    if (lines->newest != NULL)
        lines->newest->newer = shape;
    else
        lines->oldest = shape;
    lines->newest = shape;
    lines->shapes++;
    lines->odd_shapes += shape->odd;
    lines->slow += line->count / 4;
    return shape;
}
