/* One line: measurement, tags, fields, time. The grammar is that of `arcpipe.codec.line_protocol`. */
#include <stdlib.h>
#include <string.h>

#include "lines.h"
#include "texts.h"

#define FIRST_ROOM 64

/* What ends a name or a tag's value, or is a backslash in it: as bits, by the kind of text. */
enum { IN_MEASUREMENT = 1, IN_KEY = 2, IN_VALUE = 4, IN_VALUE_OF_3 = 8 };

#define EVERYWHERE (IN_MEASUREMENT | IN_KEY | IN_VALUE | IN_VALUE_OF_3)

static const uint8_t ENDS[256] = {
    ['\n'] = EVERYWHERE, [' '] = EVERYWHERE, [','] = EVERYWHERE, ['\\'] = EVERYWHERE, ['='] = IN_KEY | IN_VALUE,
};

typedef struct {
    const uint8_t *at;
    const uint8_t *end; /* where the line is given up, or the body ends */
    bool is_cut;        /* the body goes on at `end` */
    bool pairs;
} Place;

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

/* Pass a backslash, and what it takes along. */
static const uint8_t *pass_escape(const Place *place, const uint8_t *at, uint8_t kind)
{
    if (place->pairs) {
        at++;
        return at < place->end && *at != '\n' ? at + 1 : at;
    }
    while (at < place->end && *at == '\\')
        at++;
    /* The character after the last one is no delimiter. `=` is none in a measurement, and is passed as any other. */
    return at < place->end && (*at == ',' || *at == ' ' || (*at == '=' && kind != IN_MEASUREMENT)) ? at + 1 : at;
}

/* Pass a name or a tag's value; false if it is empty, or is not followed by anything. */
static inline bool pass_text(Place *place, uint8_t kind, bool *escaped)
{
    const uint8_t *at = place->at, *end = place->end;
    *escaped = false;
    for (;;) {
        while (at < end && !(ENDS[*at] & kind))
            at++;
        if (at == end)
            return false;
        if (*at != '\\')
            break;
        *escaped = true;
        at = pass_escape(place, at, kind);
    }
    bool is_there = at > place->at;
    place->at = at;
    return is_there;
}

/* Pass a key with the `=` after it; tell by `as_expected` whether it is the one that is expected, if there is any. The
 * same bytes are the same key: what ends it does not depend on what is before it. */
static inline bool pass_key(Place *place, Key *key, const Key *expected, bool *as_expected)
{
    key->text = place->at;
    *as_expected = expected != NULL && (size_t)(place->end - place->at) > expected->size &&
                   is_same(place->at, expected->text, expected->size + 1);
    if (*as_expected) {
        key->size = expected->size;
        key->escaped = expected->escaped;
        place->at += expected->size + 1;
        return true;
    }
    if (!pass_text(place, IN_KEY, &key->escaped) || *place->at != '=')
        return false;
    key->size = (uint32_t)(place->at - key->text);
    place->at++;
    return true;
}

/* Do the same for the measurement. */
static inline bool pass_measurement(Place *place, Key *key, const Key *expected, bool *as_expected)
{
    key->text = place->at;
    key->type = NONE;
    *as_expected = expected != NULL && (size_t)(place->end - place->at) > expected->size &&
                   is_same(place->at, expected->text, expected->size + 1);
    if (*as_expected) {
        key->escaped = expected->escaped;
        place->at += expected->size;
    } else if (!pass_text(place, IN_MEASUREMENT, &key->escaped)) {
        return false;
    }
    key->size = (uint32_t)(place->at - key->text);
    return true;
}

/* Pass the string after a quote, and the quote after it. */
static bool pass_string(Place *place, bool *escaped)
{
    const uint8_t *at = place->at;
    *escaped = false;
    for (; at < place->end && *at != '"'; at++)
        if (*at == '\\') {
            *escaped = true;
            at++;
        }
    if (at >= place->end)
        return false;
    place->at = at + 1;
    return true;
}

static bool pass_bool(Place *place, uint64_t *value)
{
    static const struct {
        const char *text;
        size_t size;
    } WORDS[] = {{"true", 4}, {"True", 4}, {"TRUE", 4}, {"false", 5}, {"False", 5}, {"FALSE", 5}};
    const uint8_t *at = place->at;
    *value = *at == 't' || *at == 'T';
    size_t size = 1, left = (size_t)(place->end - at);
    for (size_t word = 0; word < sizeof WORDS / sizeof *WORDS; word++)
        if (left >= WORDS[word].size && memcmp(at, WORDS[word].text, WORDS[word].size) == 0)
            size = WORDS[word].size;
    place->at = at + size;
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

static void pass_blanks(Place *place)
{
    while (place->at < place->end && (*place->at == ' ' || *place->at == '\t'))
        place->at++;
}

/* Have room for a key with this number, its value and a time. */
static inline bool has_room(Lines *lines, uint32_t number)
{
    if (number + 1 < lines->room || make_room(lines))
        return true;
    lines->no_memory = true;
    return false;
}

static inline bool read_tags(Lines *lines, Place *place, const Shape *expected, Line *line)
{
    uint8_t in_value = lines->pairs ? IN_VALUE_OF_3 : IN_VALUE;
    uint32_t number = 0;
    while (*place->at == ',') {
        place->at++;
        if (!has_room(lines, ++number))
            return false;
        Key *key = &lines->keys[number];
        key->type = TEXT;
        bool as_expected, escaped;
        if (expected != NULL && number > expected->tags)
            expected = NULL;
        if (!pass_key(place, key, expected ? &expected->keys[number] : NULL, &as_expected))
            return false;
        if (!as_expected)
            expected = NULL;
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
    line->as_expected = expected != NULL && expected->tags == number;
    return true;
}

static inline bool read_fields(Lines *lines, Place *place, const Shape *expected, Line *line)
{
    uint32_t number = line->tags;
    for (;;) {
        if (!has_room(lines, ++number))
            return false;
        Key *key = &lines->keys[number];
        bool as_expected;
        if (expected != NULL && number > expected->count)
            expected = NULL;
        if (!pass_key(place, key, expected ? &expected->keys[number] : NULL, &as_expected) ||
            !pass_value(lines, place, key, &lines->cells[number - 1], &line->text_bytes))
            return false;
        if (!as_expected || key->type != expected->keys[number].type)
            expected = NULL;
        if (place->at == place->end || *place->at != ',')
            break;
        place->at++;
    }
    line->count = number;
    line->as_expected = expected != NULL && expected->count == number;
    return true;
}

/* Read what follows the fields; the time becomes the last cell. */
static bool read_tail(Lines *lines, Place *place, Line *line)
{
    if (place->at < place->end && *place->at == ' ') {
        pass_blanks(place);
        if (place->at < place->end && (*place->at == '-' || (uint8_t)(*place->at - '0') <= 9)) {
            int64_t time;
            const uint8_t *after = read_integer(place->at, place->end, &time);
            if (after == NULL || time < lines->low || time > lines->high)
                return false;
            place->at = after;
            line->timed = true;
            lines->cells[line->count] = (uint64_t)time;
        }
    }
    while (place->at < place->end && (*place->at == ' ' || *place->at == '\t' || *place->at == '\r'))
        place->at++;
    if (place->at == place->end)
        return !place->is_cut;
    return *place->at++ == '\n';
}

size_t read_line(Lines *lines, size_t at, const Shape *expected, Line *line)
{
    size_t left = lines->size - at;
    Place place = {lines->body + at, lines->body + lines->size, false, lines->pairs};
    if (left > MOST_LINE_BYTES) {
        place.end = place.at + MOST_LINE_BYTES;
        place.is_cut = true;
    }
    *line = (Line){0};
    bool as_expected;
    if (!pass_measurement(&place, lines->keys, expected ? expected->keys : NULL, &as_expected))
        return 0;
    line->as_expected = as_expected;
    if (!read_tags(lines, &place, as_expected ? expected : NULL, line) ||
        !read_fields(lines, &place, line->as_expected ? expected : NULL, line) || !read_tail(lines, &place, line))
        return 0;
    line->as_expected = line->as_expected && expected->timed == line->timed;
    size_t size = (size_t)(place.at - lines->body) - at;
    if (!is_ascii(lines->body + at, size) && !is_utf8(lines->body + at, size))
        return 0;
    return at + size;
}
