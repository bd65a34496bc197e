/* What a line is made of, passed by both readers of a line: texts, strings, booleans, blanks, and its end. */
#ifndef ARCPIPE_PLACE_H
#define ARCPIPE_PLACE_H

#include "lines.h"
#include "texts.h"

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

/* Begin a line at an offset of the body. */
static inline Place place_of(const Lines *lines, size_t at)
{
    size_t left = lines->size - at;
    bool is_cut = left > MOST_LINE_BYTES;
    const uint8_t *start = lines->body + at;
    return (Place){start, start + (is_cut ? MOST_LINE_BYTES : left), is_cut, lines->pairs};
}

/* Pass a backslash, and what it takes along. */
static inline const uint8_t *pass_escape(const Place *place, const uint8_t *at, uint8_t kind)
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

/* Pass the string after a quote, and the quote after it. */
static inline bool pass_string(Place *place, bool *escaped)
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

static inline bool pass_bool(Place *place, uint64_t *value)
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

static inline void pass_blanks(Place *place)
{
    while (place->at < place->end && (*place->at == ' ' || *place->at == '\t'))
        place->at++;
}

/* Read what follows the fields, with a time or without. */
static inline bool pass_tail(const Lines *lines, Place *place, bool *timed, uint64_t *time)
{
    *timed = false;
    if (place->at < place->end && *place->at == ' ') {
        pass_blanks(place);
        if (place->at < place->end && (*place->at == '-' || (uint8_t)(*place->at - '0') <= 9)) {
            int64_t found;
            const uint8_t *after = read_integer(place->at, place->end, &found);
            if (after == NULL || found < lines->low || found > lines->high)
                return false;
            place->at = after;
            *timed = true;
            *time = (uint64_t)found;
        }
    }
    while (place->at < place->end && (*place->at == ' ' || *place->at == '\t' || *place->at == '\r'))
        place->at++;
    if (place->at == place->end)
        return !place->is_cut;
    return *place->at++ == '\n';
}

#endif
