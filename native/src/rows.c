#include "rows.h"

#include <stdlib.h>
#include <string.h>

#include "hashes.h"
#include "texts.h"
#include "values.h"

#define MOST_NAME_BYTES 255

/* A row as it was read, key by key. */
typedef struct {
    Literal measurement, after;
    RowValue values[MOST_VALUES];
    Cell cells[MOST_VALUES];
    uint32_t count;
} Draft;

struct HashPlace {
    uint64_t hash;
    uint32_t number; /* of the shape, plus one; 0 in a free place */
};

typedef struct {
    const uint8_t *at, *end;
    const uint8_t *begun; /* the end of the value before */
} Cursor;

/* Pass a text of MOST_NAME_BYTES at most, with the shortest header that it may have; false for all else. */
static bool pass_text(Cursor *cursor, Literal *text)
{
    size_t left = (size_t)(cursor->end - cursor->at), size = 0;
    size_t header = left ? text_header(cursor->at, left, &size) : 0;
    if (!header || size > MOST_NAME_BYTES)
        return false;
    *text = (Literal){cursor->at + header, size};
    cursor->at += header + size;
    return true;
}

/* Pass a name that is printable ASCII. */
static bool pass_name(Cursor *cursor, Literal *name)
{
    return pass_text(cursor, name) && name->size && is_printable(name->text, name->size);
}

/* Pass the shortest header that a map may have. */
static bool pass_map(Cursor *cursor, size_t *pairs)
{
    size_t left = (size_t)(cursor->end - cursor->at);
    if (left && *cursor->at >> 4 == 8) {
        *pairs = *cursor->at++ & 15;
        return true;
    }
    if (left < 3 || *cursor->at != 0xDE)
        return false;
    *pairs = big_endian(cursor->at + 1, 2);
    cursor->at += 3;
    return *pairs > 15;
}

static bool pass_value(Cursor *cursor, const uint8_t *data, Draft *draft, Role role, Literal name)
{
    size_t size = cursor->at < cursor->end ? value_size(cursor->at, (size_t)(cursor->end - cursor->at)) : 0;
    if (!size || draft->count == MOST_VALUES)
        return false;
    Literal before = {cursor->begun, (size_t)(cursor->at - cursor->begun)};
    draft->values[draft->count] = (RowValue){before, name, role, 0, 0};
    draft->cells[draft->count++] = (Cell){(uint32_t)(cursor->at - data), (uint32_t)size};
    cursor->at += size;
    cursor->begun = cursor->at;
    return true;
}

static bool pass_pairs(Cursor *cursor, const uint8_t *data, Draft *draft, Role role)
{
    size_t pairs;
    Literal name;
    if (!pass_map(cursor, &pairs) || (role == OF_FIELD && !pairs))
        return false;
    while (pairs--)
        if (!pass_name(cursor, &name) || !pass_value(cursor, data, draft, role, name))
            return false;
    return true;
}

static bool is_text(const Literal *text, const char *other)
{
    return text->size == strlen(other) && !memcmp(text->text, other, text->size);
}

/* Read a row key by key: the offset after it, or 0. */
static size_t read_row(const uint8_t *data, size_t at, size_t end, Draft *draft)
{
    Cursor cursor = {data + at, data + end, data + at};
    size_t pairs;
    bool has_measurement = false, has_time = false, has_host = false, has_tags = false, has_fields = false;
    const Literal none = {NULL, 0};
    draft->count = 0;
    if (!pass_map(&cursor, &pairs))
        return 0;
    while (pairs--) {
        Literal key;
        bool *has, done;
        if (!pass_text(&cursor, &key))
            return 0;
        if (is_text(&key, "m")) {
            has = &has_measurement;
            done = pass_name(&cursor, &draft->measurement);
        } else if (is_text(&key, "t")) {
            has = &has_time;
            done = pass_value(&cursor, data, draft, OF_TIME, none);
        } else if (is_text(&key, "h")) {
            has = &has_host;
            done = pass_value(&cursor, data, draft, OF_HOST, none);
        } else if (is_text(&key, "tags")) {
            has = &has_tags;
            done = pass_pairs(&cursor, data, draft, OF_TAG);
        } else if (is_text(&key, "fields")) {
            has = &has_fields;
            done = pass_pairs(&cursor, data, draft, OF_FIELD);
        } else {
            return 0;
        }
        if (!done || *has)
            return 0;
        *has = true;
    }
    if (!has_measurement || !has_fields)
        return 0;
    draft->after = (Literal){cursor.begun, (size_t)(cursor.at - cursor.begun)};
    return (size_t)(cursor.at - data);
}

static inline bool begins_with(const uint8_t *at, const uint8_t *end, const Literal *literal)
{
    return (size_t)(end - at) >= literal->size && is_same(at, literal->text, literal->size);
}

/* Read a row of this shape: the offset after it, or 0. */
static size_t read_like(const uint8_t *data, size_t start, size_t stop, const RowShape *shape, Cell *cells)
{
    const uint8_t *at = data + start, *end = data + stop;
    for (uint32_t number = 0; number < shape->count; number++) {
        const Literal *before = &shape->values[number].before;
        if (!begins_with(at, end, before))
            return 0;
        at += before->size;
        size_t size = at < end ? value_size(at, (size_t)(end - at)) : 0;
        if (!size)
            return 0;
        cells[number] = (Cell){(uint32_t)(at - data), (uint32_t)size};
        at += size;
    }
    return begins_with(at, end, &shape->after) ? (size_t)(at - data) + shape->after.size : 0;
}

static uint64_t hash_draft(const Draft *draft)
{
    uint64_t hash = hash_of(draft->after.text, draft->after.size, mix(hash_seed, draft->count));
    for (uint32_t number = 0; number < draft->count; number++)
        hash = hash_of(draft->values[number].before.text, draft->values[number].before.size, hash);
    return hash;
}

static bool is_same_literal(const Literal *one, const Literal *other)
{
    return one->size == other->size && is_same(one->text, other->text, one->size);
}

static bool is_of(const Draft *draft, const RowShape *shape)
{
    if (shape->count != draft->count || !is_same_literal(&shape->after, &draft->after))
        return false;
    for (uint32_t number = 0; number < draft->count; number++)
        if (!is_same_literal(&shape->values[number].before, &draft->values[number].before))
            return false;
    return true;
}

/* Make room for one more piece of this size; false if there is no memory. */
static bool have_room(void **pieces, size_t size, uint32_t needed, uint32_t *room)
{
    if (needed <= *room)
        return true;
    uint32_t more = needed < 64 ? 64 : 2 * needed;
    void *larger = realloc(*pieces, more * size);
    if (larger == NULL)
        return false;
    *pieces = larger;
    *room = more;
    return true;
}

/* Return the place of a hash, or the free one where it would be. */
static struct HashPlace *place_of(const HashTable *table, uint64_t hash)
{
    uint32_t at = (uint32_t)hash & (table->room - 1);
    while (table->places[at].number && table->places[at].hash != hash)
        at = (at + 1) & (table->room - 1);
    return &table->places[at];
}

/* Have a free place for one hash more; false if there is no memory. */
static bool have_place(HashTable *table)
{
    if (2 * table->count < table->room)
        return true;
    HashTable larger = {NULL, table->room ? 4 * table->room : 64, table->count};
    larger.places = calloc(larger.room, sizeof(struct HashPlace));
    if (larger.places == NULL)
        return false;
    for (uint32_t at = 0; at < table->room; at++)
        if (table->places[at].number)
            *place_of(&larger, table->places[at].hash) = table->places[at];
    free(table->places);
    *table = larger;
    return true;
}

static void add_hash(HashTable *table, struct HashPlace *place, uint64_t hash, uint32_t number)
{
    *place = (struct HashPlace){hash, number + 1};
    table->count++;
}

/* Note the roles and names of a new shape. False if two columns would have one name. */
static bool name_values(RowShape *shape)
{
    shape->time = shape->host = NO_VALUE;
    shape->names = hash_of(shape->measurement.text, shape->measurement.size, hash_seed);
    for (uint32_t number = 0; number < shape->count; number++) {
        RowValue *value = &shape->values[number];
        if (value->role == OF_TIME) {
            shape->time = number;
            continue;
        }
        if (value->role == OF_HOST) {
            shape->host = number;
            value->name = (Literal){(const uint8_t *)"host", 4};
        } else if (is_text(&value->name, "time")) {
            return false;
        }
        value->hash = hash_of(value->name.text, value->name.size, hash_seed);
        for (uint32_t other = 0; other < number; other++)
            if (other != shape->time && shape->values[other].hash == value->hash)
                return false;
        shape->names += mix(value->hash, value->role);
    }
    return true;
}

static RowShape *new_shape(Rows *rows, const Draft *draft, uint64_t hash)
{
    RowShape *shape = arena_take(&rows->arena, sizeof(RowShape));
    RowValue *values = arena_take(&rows->arena, draft->count * sizeof(RowValue));
    if (shape == NULL || values == NULL ||
        !have_room((void **)&rows->shapes, sizeof(RowShape *), rows->shape_count + 1, &rows->shape_room)) {
        rows->no_memory = true;
        return NULL;
    }
    memcpy(values, draft->values, draft->count * sizeof(RowValue));
    *shape = (RowShape){.measurement = draft->measurement, .after = draft->after, .values = values};
    shape->count = draft->count;
    shape->hash = hash;
    shape->first = shape->last = NO_ROW;
    shape->follower = shape;
    return shape;
}

/* Find or make the shape of a row; NULL if there is no memory, or if Python is to do it: there are too many, or rows of a
 * shape before have the same columns in another order, which Python joins. */
static RowShape *shape_of(Rows *rows, const Draft *draft)
{
    if (!have_place(&rows->by_hash) || !have_place(&rows->by_names)) {
        rows->no_memory = true;
        return NULL;
    }
    uint64_t hash = hash_draft(draft);
    struct HashPlace *place = place_of(&rows->by_hash, hash);
    if (place->number) {
        RowShape *known = rows->shapes[place->number - 1];
        return is_of(draft, known) ? known : NULL;
    }
    RowShape *shape = rows->shape_count < MOST_ROW_SHAPES ? new_shape(rows, draft, hash) : NULL;
    if (shape == NULL || !name_values(shape))
        return NULL;
    struct HashPlace *of_names = place_of(&rows->by_names, shape->names);
    if (of_names->number)
        return NULL;
    add_hash(&rows->by_hash, place, hash, rows->shape_count);
    add_hash(&rows->by_names, of_names, shape->names, rows->shape_count);
    rows->shapes[rows->shape_count++] = shape;
    return shape;
}

/* Tell whether a value is a text in UTF-8. */
static bool is_string(const uint8_t *at, size_t size)
{
    size_t header = 0;
    if (*at >> 5 == SHORT_TEXT)
        header = 1;
    else if (*at >= STRING8 && *at <= STRING8 + 2)
        header = 1 + ((size_t)1 << (*at - STRING8));
    return header && is_utf8(at + header, size - header);
}

/* Take the row whose values are after those of the rows before. False if its host is no text. */
static bool add_row(Rows *rows, RowShape *shape)
{
    const Cell *cells = &rows->cells[rows->cell_count];
    if (shape->host != NO_VALUE && !is_string(rows->data + cells[shape->host].start, cells[shape->host].size))
        return false;
    uint32_t number = rows->row_count++;
    rows->rows[number] = (RowPlace){NO_ROW, rows->cell_count};
    if (shape->rows++)
        rows->rows[shape->last].next = number;
    else
        shape->first = number;
    shape->last = number;
    for (uint32_t value = 0; value < shape->count; value++)
        shape->values[value].bytes += cells[value].size;
    rows->cell_count += shape->count;
    return true;
}

void begin_rows(Rows *rows, const uint8_t *data)
{
    *rows = (Rows){.data = data};
}

size_t gather_rows(Rows *rows, size_t stop, size_t end, size_t count)
{
    RowShape *latest = NULL;
    size_t at = 0;
    while (count-- && at < stop) {
        if (!have_room((void **)&rows->rows, sizeof(RowPlace), rows->row_count + 1, &rows->row_room) ||
            !have_room((void **)&rows->cells, sizeof(Cell), rows->cell_count + MOST_VALUES, &rows->cell_room)) {
            rows->no_memory = true;
            return 0;
        }
        RowShape *shape = latest ? latest->follower : NULL;
        size_t after = shape ? read_like(rows->data, at, end, shape, &rows->cells[rows->cell_count]) : 0;
        if (!after) {
            Draft draft;
            after = read_row(rows->data, at, end, &draft);
            shape = after ? shape_of(rows, &draft) : NULL;
            if (shape == NULL)
                return 0;
            memcpy(&rows->cells[rows->cell_count], draft.cells, draft.count * sizeof(Cell));
        }
        if (!add_row(rows, shape))
            return 0;
        if (latest)
            latest->follower = shape;
        latest = shape;
        at = after;
    }
    return at;
}

void free_rows(Rows *rows)
{
    arena_free(&rows->arena);
    free(rows->shapes);
    free(rows->by_hash.places);
    free(rows->by_names.places);
    free(rows->rows);
    free(rows->cells);
}
