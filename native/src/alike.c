/* A line with the measurement and the keys of a line before, which most have. They are compared, not searched, and values
 * are read as what they were there. Values differ in length, so a loop over bytes would end where no processor expects
 * it: eight or 16 of them are looked at together. */
#include "digits.h"
#include "place.h"
#include "vectors.h"

/* Pass bytes that end no tag's value, up to one that may, or to the last 15 of a line. */
static inline const uint8_t *pass_plain(const uint8_t *at, const uint8_t *end)
{
#ifdef HAS_VECTORS
    for (; end - at >= VECTOR_BYTES; at += VECTOR_BYTES) {
        Vector bytes = vector_at(at);
        Vector ends = any_of(any_of(is_byte(bytes, ','), is_byte(bytes, ' ')), is_byte(bytes, '\n'));
        unsigned bits = bits_of_vector(any_of(ends, any_of(is_byte(bytes, '='), is_byte(bytes, '\\'))));
        if (bits)
            return at + __builtin_ctz(bits);
    }
#else
    (void)end;
#endif
    return at;
}

/* Do the same for a string. */
static inline const uint8_t *pass_unquoted(const uint8_t *at, const uint8_t *end)
{
#ifdef HAS_VECTORS
    for (; end - at >= VECTOR_BYTES; at += VECTOR_BYTES) {
        Vector bytes = vector_at(at);
        unsigned bits = bits_of_vector(any_of(is_byte(bytes, '"'), is_byte(bytes, '\\')));
        if (bits)
            return at + __builtin_ctz(bits);
    }
#else
    (void)end;
#endif
    return at;
}

/* Pass a key as it was in a line before: what separates it, and the `=` after it. The same bytes are the same key: what
 * ends it does not depend on what is before it. */
static inline bool pass_same_key(Place *place, const Key *key)
{
    const uint8_t *at = place->at, *same = key->text - 1;
    size_t size = (size_t)key->size + 2;
    place->at += size;
#ifdef HAS_VECTORS
    if (size <= VECTOR_BYTES && place->end - at >= VECTOR_BYTES)
        return !(~bits_of_vector(are_same(vector_at(at), vector_at(same))) & ((1U << size) - 1));
#endif
    return (size_t)(place->end - at) >= size && is_same(at, same, size);
}

/* Pass the value of a tag; false if it is empty. */
static inline bool pass_tag(Place *place, uint8_t kind, bool *escaped)
{
    const uint8_t *start = place->at;
    place->at = pass_plain(start, place->end);
    if (place->at < place->end && (*place->at == ',' || *place->at == ' ')) {
        *escaped = false;
        return place->at > start;
    }
    place->at = start;
    return pass_text(place, kind, escaped);
}

static inline bool pass_quoted(Place *place, bool *escaped)
{
    const uint8_t *start = place->at;
    place->at = pass_unquoted(start, place->end);
    if (place->at < place->end && *place->at == '"') {
        *escaped = false;
        place->at++;
        return true;
    }
    place->at = start;
    return pass_string(place, escaped);
}

static inline uint64_t cell_of(const Lines *lines, const uint8_t *text, bool escaped, size_t size, size_t *text_bytes)
{
    *text_bytes += size;
    return TEXT_CELL(text - lines->body, escaped, size);
}

/* Pass the value of a field of this type. */
static inline bool pass_field(Lines *lines, Place *place, Type type, uint64_t *cell, size_t *text_bytes)
{
    if (place->at == place->end)
        return false;
    uint8_t first = *place->at;
    if (type == TEXT) {
        bool escaped;
        const uint8_t *text = ++place->at;
        if (first != '"' || !pass_quoted(place, &escaped))
            return false;
        *cell = cell_of(lines, text, escaped, (size_t)(place->at - 1 - text), text_bytes);
        return true;
    }
    if (type == BOOL)
        return (first == 't' || first == 'T' || first == 'f' || first == 'F') && pass_bool(place, cell);
    const uint8_t *after = type == FLOAT     ? read_usual_float(place->at, place->end, cell)
                           : type == INTEGER ? read_usual_integer(place->at, place->end, cell)
                                             : NULL;
    if (after != NULL) {
        place->at = after;
        return true;
    }
    Type found;
    after = read_number(place->at, place->end, &found, cell, &lines->slow);
    place->at = after;
    return after != NULL && found == type;
}

/* What follows a value is compared with the next key: a comma, or the space before the fields. */
size_t read_alike(Lines *lines, size_t at, const Shape *shape, Row *row, size_t *text_bytes)
{
    const Key *keys = shape->keys;
    uint64_t *cell = row->cells + shape->timed;
    uint8_t in_value = lines->pairs ? IN_VALUE_OF_3 : IN_VALUE;
    Place place = place_of(lines, at);
    *text_bytes = 0;
    if ((size_t)(place.end - place.at) <= keys->size || !is_same(place.at, keys->text, keys->size))
        return 0;
    place.at += keys->size;
    uint32_t number = 1;
    for (; number <= shape->tags; number++) {
        if (!pass_same_key(&place, &keys[number]))
            return 0;
        const uint8_t *text = place.at;
        bool escaped;
        if (!pass_tag(&place, in_value, &escaped))
            return 0;
        *cell++ = cell_of(lines, text, escaped, (size_t)(place.at - text), text_bytes);
    }
    if (*place.at != ' ')
        return 0;
    for (; number <= shape->count; number++)
        if (!pass_same_key(&place, &keys[number]) ||
            !pass_field(lines, &place, (Type)keys[number].type, cell++, text_bytes))
            return 0;
    if (place.at < place.end && *place.at != ' ' && *place.at != '\n' && *place.at != '\r' && *place.at != '\t')
        return 0;
    if (shape->timed && place.end - place.at > 20 && *place.at == ' ') {
        int64_t time;
        const uint8_t *after = read_usual_time(place.at + 1, place.end, &time);
        if (after != NULL && time >= lines->low && time <= lines->high) {
            after += *after == '\r';
            if (after < place.end && *after == '\n') {
                row->cells[0] = (uint64_t)time;
                return (size_t)(after + 1 - lines->body);
            }
        }
    }
    bool timed;
    uint64_t time = 0;
    if (!pass_tail(lines, &place, &timed, &time) || timed != shape->timed)
        return 0;
    if (timed)
        row->cells[0] = time;
    return (size_t)(place.at - lines->body);
}
