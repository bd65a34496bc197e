/* Lines become columnar maps in MessagePack, as `codec.columns.ColumnBatch` writes them. */
#include <string.h>

#include "lines.h"
#include "packing.h"
#include "texts.h"

#define NUMBER_BYTES 9
#define FIXED_BYTES 64 /* of a map's head and tail, without names */
#define WORD_BYTES 4   /* of "u64" */
#define SPARE_BYTES 16 /* after the maps, that may be written, too */
#define SUFFIX "_field" /* of a field that clashes */
#define SUFFIX_BYTES (sizeof SUFFIX - 1)

static inline uint8_t *put_be64(uint8_t *to, uint64_t value)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    value = __builtin_bswap64(value);
#endif
    memcpy(to, &value, sizeof value);
    return to + sizeof value;
}

static uint8_t *put_name(uint8_t *to, const Name *name)
{
    if (!name->clashes)
        return put_text(to, name->text, name->size);
    to = put_size(to, name->size + SUFFIX_BYTES);
    memcpy(to, name->text, name->size);
    memcpy(to + name->size, SUFFIX, SUFFIX_BYTES);
    return to + name->size + SUFFIX_BYTES;
}

/* Put the values of one column; `column` counts the cells of a row. */
static uint8_t *put_numbers(uint8_t *to, const Shape *shape, uint32_t column, uint8_t marker)
{
    for (const Row *row = shape->first; row != NULL; row = row->next) {
        *to = marker;
        to = put_be64(to + 1, row->cells[column]);
    }
    return to;
}

static uint8_t *put_bools(uint8_t *to, const Shape *shape, uint32_t column)
{
    for (const Row *row = shape->first; row != NULL; row = row->next)
        *to++ = (uint8_t)(0xC2 | row->cells[column]);
    return to;
}

/* Copy a text. Most are short: 16 bytes are copied at once where there are as many, and the rest is written over. */
static inline uint8_t *copy_text(uint8_t *to, const Lines *lines, const uint8_t *text, size_t size)
{
    if (size <= SPARE_BYTES && (size_t)(lines->body + lines->size - text) >= SPARE_BYTES)
        memcpy(to, text, SPARE_BYTES);
    else
        memcpy(to, text, size);
    return to + size;
}

static uint8_t *put_texts(uint8_t *to, const Lines *lines, const Shape *shape, uint32_t column, unsigned escaped)
{
    for (const Row *row = shape->first; row != NULL; row = row->next) {
        uint64_t cell = row->cells[column];
        const uint8_t *text = lines->body + TEXT_OFFSET(cell);
        size_t size = TEXT_SIZE(cell);
        if (!TEXT_ESCAPED(cell)) {
            to = copy_text(put_size(to, size), lines, text, size);
            continue;
        }
        size_t count = unescape(text, size, escaped, NULL);
        to = put_size(to, count);
        to += unescape(text, size, escaped, to);
    }
    return to;
}

/* Put the column of a tag or field; `number` is that of its key. */
static uint8_t *put_column(uint8_t *to, const Lines *lines, const Shape *shape, uint32_t number)
{
    uint32_t column = number - 1 + shape->timed;
    to = put_array(put_name(to, &shape->names[number]), shape->rows);
    switch ((Type)shape->keys[number].type) {
    case FLOAT:
        return put_numbers(to, shape, column, 0xCB);
    case INTEGER:
        return put_numbers(to, shape, column, 0xD3);
    case UNSIGNED:
        return put_numbers(to, shape, column, 0xCF);
    case BOOL:
        return put_bools(to, shape, column);
    default:
        if (number > shape->tags)
            return put_texts(to, lines, shape, column, QUOTE | BACKSLASH);
        return put_texts(to, lines, shape, column, COMMA | SPACE | EQUALS | (lines->pairs ? BACKSLASH : 0));
    }
}

static uint8_t *put_shape(uint8_t *to, const Lines *lines, const Shape *shape)
{
    uint32_t unsigned_columns = 0;
    for (uint32_t number = 1; number <= shape->count; number++)
        unsigned_columns += shape->keys[number].type == UNSIGNED;
    to = put_map(to, (size_t)2 + (shape->tags > 0) + (unsigned_columns > 0));
    to = put_text(put_text(to, "m", 1), shape->names[0].text, shape->names[0].size);
    to = put_map(put_text(to, "columns", 7), (size_t)shape->count + shape->timed);
    if (shape->timed) {
        to = put_array(put_text(to, "time", 4), shape->rows);
        to = put_numbers(to, shape, 0, 0xD3);
    }
    for (uint32_t number = 1; number <= shape->count; number++)
        to = put_column(to, lines, shape, number);
    if (shape->tags) {
        to = put_array(put_text(to, "tags", 4), shape->tags);
        for (uint32_t number = 1; number <= shape->tags; number++)
            to = put_name(to, &shape->names[number]);
    }
    if (unsigned_columns) {
        to = put_map(put_text(to, "types", 5), unsigned_columns);
        for (uint32_t number = 1; number <= shape->count; number++)
            if (shape->keys[number].type == UNSIGNED)
                to = put_text(put_name(to, &shape->names[number]), "u64", 3);
    }
    return to;
}

static size_t most_bytes_of(const Shape *shape)
{
    /* Each name is there twice at most: with its column, and in the list of tags or in that of types. */
    size_t names = 0, row = 0;
    for (uint32_t number = 0; number <= shape->count; number++)
        names += 2 * (HEADER_BYTES + shape->names[number].size + SUFFIX_BYTES) + HEADER_BYTES + WORD_BYTES;
    for (uint32_t number = 1; number <= shape->count; number++)
        row += shape->keys[number].type == BOOL ? 1 : shape->keys[number].type == TEXT ? 3 : NUMBER_BYTES;
    row += shape->timed ? NUMBER_BYTES : 0;
    return FIXED_BYTES + names + shape->rows * row + shape->text_bytes;
}

size_t most_map_bytes(const Lines *lines)
{
    size_t bytes = HEADER_BYTES + SPARE_BYTES;
    for (const Shape *shape = lines->oldest; shape != NULL; shape = shape->newer)
        if (shape->rows)
            bytes += most_bytes_of(shape);
    return bytes;
}

size_t pack_maps(const Lines *lines, bool alone, uint8_t *to)
{
    uint8_t *start = to;
    if (alone && lines->maps != 1)
        to = put_array(to, lines->maps);
    for (const Shape *shape = lines->oldest; shape != NULL; shape = shape->newer)
        if (shape->rows)
            to = put_shape(to, lines, shape);
    return (size_t)(to - start);
}
