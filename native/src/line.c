/* One line: measurement, tags, fields, time. The grammar is that of `arcpipe.codec.line_protocol`. */
#include <stdlib.h>
#include <string.h>

#include "place.h"

#define FIRST_ROOM 64

bool make_room(Lines *lines)
{
    uint32_t room = lines->room ? 2 * lines->room : FIRST_ROOM;
    Key *keys = realloc(lines->keys, room * sizeof *keys);
    if (keys == NULL)
        return false;
    lines->keys = keys;
    uint64_t *cells = realloc(lines->cells, room * sizeof *cells);
    if (cells == NULL)
        return false;
    lines->cells = cells;
    lines->room = room;
    return true;
}

/* Pass a key with the `=` after it. */
static inline bool pass_key(Place *place, Key *key)
{
    key->text = place->at;
    if (!pass_text(place, IN_KEY, &key->escaped) || *place->at != '=')
        return false;
    key->size = (uint32_t)(place->at - key->text);
    place->at++;
    return true;
}

static inline bool pass_measurement(Place *place, Key *key)
{
    key->text = place->at;
    key->type = NONE;
    if (!pass_text(place, IN_MEASUREMENT, &key->escaped))
        return false;
    key->size = (uint32_t)(place->at - key->text);
    return true;
}

/* Tell whether a value ends here. */
static bool is_after_value(const Place *place)
{
    if (place->at == place->end)
        return !place->is_cut;
    uint8_t next = *place->at;
    return next == ',' || next == ' ' || next == '\n' || next == '\t' || next == '\r';
}

static inline bool pass_value(Lines *lines, Place *place, Key *key, uint64_t *cell, size_t *text_bytes)
{
    if (place->at == place->end)
        return false;
    uint8_t first = *place->at;
    if (first == '"') {
        bool escaped;
        const uint8_t *text = ++place->at;
        if (!pass_string(place, &escaped))
            return false;
        size_t size = (size_t)(place->at - 1 - text);
        key->type = TEXT;
        *cell = TEXT_CELL(text - lines->body, escaped, size);
        *text_bytes += size;
    } else if (first == 't' || first == 'T' || first == 'f' || first == 'F') {
        key->type = BOOL;
        if (!pass_bool(place, cell))
            return false;
    } else {
        Type type;
        const uint8_t *after = read_number(place->at, place->end, &type, cell, &lines->slow);
        if (after == NULL)
            return false;
        key->type = (uint8_t)type;
        place->at = after;
    }
    return is_after_value(place);
}

/* Have room for a key with this number, its value and a time. */
static inline bool has_room(Lines *lines, uint32_t number)
{
    if (number + 1 < lines->room || make_room(lines))
        return true;
    lines->no_memory = true;
    return false;
}

static inline bool read_tags(Lines *lines, Place *place, Line *line)
{
    uint8_t in_value = lines->pairs ? IN_VALUE_OF_3 : IN_VALUE;
    uint32_t number = 0;
    while (*place->at == ',') {
        place->at++;
        if (!has_room(lines, ++number))
            return false;
        Key *key = &lines->keys[number];
        key->type = TEXT;
        if (!pass_key(place, key))
            return false;
        bool escaped;
        const uint8_t *value = place->at;
        if (!pass_text(place, in_value, &escaped))
            return false;
        size_t size = (size_t)(place->at - value);
        lines->cells[number - 1] = TEXT_CELL(value - lines->body, escaped, size);
        line->text_bytes += size;
    }
    if (*place->at != ' ')
        return false;
    pass_blanks(place);
    line->tags = number;
    return true;
}

static inline bool read_fields(Lines *lines, Place *place, Line *line)
{
    uint32_t number = line->tags;
    for (;;) {
        if (!has_room(lines, ++number))
            return false;
        Key *key = &lines->keys[number];
        if (!pass_key(place, key) || !pass_value(lines, place, key, &lines->cells[number - 1], &line->text_bytes))
            return false;
        if (place->at == place->end || *place->at != ',')
            break;
        place->at++;
    }
    line->count = number;
    return true;
}

size_t read_line(Lines *lines, size_t at, Line *line)
{
    Place place = place_of(lines, at);
    *line = (Line){0};
    if (!pass_measurement(&place, lines->keys) || !read_tags(lines, &place, line) ||
        !read_fields(lines, &place, line) || !pass_tail(lines, &place, &line->timed, &lines->cells[line->count]))
        return 0;
    return (size_t)(place.at - lines->body);
}
