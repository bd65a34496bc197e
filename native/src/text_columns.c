#include "column_parts.h"
#include "texts.h"

/* A dictionary while it is made. */
typedef struct {
    const Bounds *bounds;
    Dictionary *words;
    size_t middle;        /* the first row of the second sample */
    size_t in_sample;     /* different words in it */
    size_t encoded_bytes; /* of all words */
} Making;

/* Take the next text, which may be any; return its bytes with the header. 0, with a kind set, if that ends it. */
static size_t add_word(Making *making, const uint8_t *at, size_t left, int32_t *number, Kind *kind)
{
    Dictionary *words = making->words;
    const Bounds *bounds = making->bounds;
    size_t size, header = text_header(at, left, &size), before = words->count;
    uint32_t word = header ? dictionary_number(words, at + header, (uint32_t)size, left - header) : NO_WORD;
    if (word == NO_WORD) {
        *kind = LEFT;
        return 0;
    }
    *number = (int32_t)word;
    if (words->count > before) {
        making->encoded_bytes += header + size + 4;
        if (words->count > bounds->most_words || making->encoded_bytes > bounds->most_bytes) {
            *kind = TEXTS;
            return 0;
        }
    }
    return header + size;
}

/* Count a word of the second sample. False if too many differ. */
static bool sample(Making *making, int32_t word)
{
    making->in_sample += !making->words->marks[word];
    making->words->marks[word] = 1;
    return making->in_sample <= making->bounds->sample / 2;
}

/* Step over texts that are short and were seen; return the row of the first that is not, or `stop`. */
static size_t take_seen(const Dictionary *dictionary, const uint8_t **from, const uint8_t *end, int32_t *numbers,
                        size_t row, size_t stop)
{
    const Word *words = dictionary->words;
    const uint32_t *places = dictionary->places;
    const uint32_t mask = dictionary->mask;
    const uint8_t *at = *from;
    for (; row < stop && end - at >= 17; row++) {
        uint32_t size = (uint32_t)*at - 0xA0;
        if (size > 16)
            break;
        uint32_t number = dictionary_seen(words, places, mask, at + 1, size);
        if (!number)
            break;
        fetch(at);
        numbers[row] = (int32_t)number - 1;
        at += 1 + size;
    }
    *from = at;
    return row;
}

Kind read_dictionary(const Column *column, const Bounds *bounds, int32_t *numbers, Nils *nils, Dictionary *dictionary)
{
    if (column->count < bounds->least_values)
        return TEXTS;
    Making making = {.bounds = bounds, .words = dictionary, .middle = column->count / 2, .encoded_bytes = 4};
    Kind kind = LEFT;
    size_t row = 0;
    for (size_t number = 0; number < column->number; number++) {
        const uint8_t *at = column->parts[number].data, *end = at + column->parts[number].size;
        size_t stop = row + column->parts[number].count;
        fetch_part(column, number + 1);
        while (row < stop) {
            if (row == bounds->sample && dictionary->count > bounds->sample / 2)
                return TEXTS;
            bool in_sample = row - making.middle < bounds->sample;
            if (row > bounds->sample && !in_sample) {
                size_t most = row < making.middle && making.middle < stop ? making.middle : stop;
                row = take_seen(dictionary, &at, end, numbers, row, most);
                if (row == most)
                    continue;
            }
            if (at == end)
                return LEFT;
            if (*at == NIL) {
                if (!add_nil(nils, row, column->count))
                    return LEFT;
                numbers[row] = 0;
                at++;
            } else {
                size_t size = add_word(&making, at, (size_t)(end - at), &numbers[row], &kind);
                if (!size)
                    return kind;
                if (in_sample && !sample(&making, numbers[row]))
                    return TEXTS;
                at += size;
            }
            row++;
        }
        if (at != end)
            return LEFT;
    }
    return dictionary->count ? DICTIONARY : LEFT;
}

Kind find_texts(const Column *column, int32_t *offsets, Nils *nils)
{
    size_t row = 0;
    int32_t total = 0;
    offsets[0] = 0;
    for (size_t number = 0; number < column->number; number++) {
        const uint8_t *at = column->parts[number].data, *end = at + column->parts[number].size;
        size_t stop = row + column->parts[number].count;
        fetch_part(column, number + 1);
        for (; row < stop; row++) {
            if (at == end)
                return LEFT;
            if (*at == NIL) {
                if (!add_nil(nils, row, column->count))
                    return LEFT;
                at++;
            } else {
                size_t size, header = text_header(at, (size_t)(end - at), &size);
                if (!header)
                    return LEFT;
                at += header + size;
                total += (int32_t)size;
            }
            offsets[row + 1] = total;
        }
        if (at != end)
            return LEFT;
    }
    return TEXTS;
}

Kind copy_texts(const Column *column, const int32_t *offsets, uint8_t *to)
{
    size_t row = 0;
    for (size_t number = 0; number < column->number; number++) {
        const uint8_t *at = column->parts[number].data, *end = at + column->parts[number].size;
        size_t stop = row + column->parts[number].count;
        for (; row < stop; row++) {
            if (*at == NIL) {
                at++;
                continue;
            }
            size_t size = 0;
            at += text_header(at, (size_t)(end - at), &size);
            uint8_t *copy = to + offsets[row];
            if (size <= 16 && end - at >= 16 && offsets[column->count] - offsets[row] >= 16) {
                memcpy(copy, at, 16); /* what is too much is written over by the next text */
            } else {
                memcpy(copy, at, size);
            }
            at += size;
        }
    }
    size_t size = (size_t)offsets[column->count];
    if (ascii_bytes(to, size) == size)
        return TEXTS;
    for (row = 0; row < column->count; row++)
        if (!is_utf8(to + offsets[row], (size_t)(offsets[row + 1] - offsets[row])))
            return LEFT;
    return TEXTS;
}
