/* The lines of a body, one after the other. */
#include "lines.h"

#include <stdlib.h>
#include <string.h>

#include "texts.h"

#define MOST_AHEAD ((size_t)4 * 1024) /* bytes that are looked ahead for UTF-8 */

static inline size_t row_bytes(uint32_t count, bool timed)
{
    return sizeof(Row) + (count + timed) * sizeof(uint64_t);
}

/* Have memory for a row, which `keep_row` takes; NULL if there is none. */
static inline Row *room_for_row(Lines *lines, uint32_t count, bool timed)
{
    Row *row = arena_room(&lines->arena, row_bytes(count, timed));
    lines->no_memory |= row == NULL;
    return row;
}

static inline void keep_row(Lines *lines, Shape *shape, Row *row, size_t text_bytes)
{
    arena_take(&lines->arena, row_bytes(shape->count, shape->timed));
    row->next = NULL;
    if (shape->last != NULL) {
        shape->last->next = row;
    } else {
        shape->first = row;
        lines->maps++;
    }
    shape->last = row;
    shape->rows++;
    shape->text_bytes += text_bytes;
    lines->records++;
    lines->latest = shape;
}

/* Note the shape of the line after one of this shape. Senders have several lines of one shape, then others: so there are
 * two that are expected. */
static inline void follow(Shape *shape, Shape *follower)
{
    if (shape->follower == follower)
        return;
    shape->other = shape->follower;
    shape->follower = follower;
}

/* Keep the values of a line; false if they are left, or there is no memory. */
static bool keep(Lines *lines, const Line *line)
{
    Shape *shape = find_shape(lines, line);
    if (shape == NULL)
        return false;
    if (lines->latest != NULL)
        follow(lines->latest, shape);
    lines->latest = shape;
    Row *row = shape->odd ? NULL : room_for_row(lines, line->count, line->timed);
    if (row == NULL)
        return false;
    if (line->timed)
        row->cells[0] = lines->cells[line->count];
    memcpy(row->cells + line->timed, lines->cells, line->count * sizeof *row->cells);
    keep_row(lines, shape, row, line->text_bytes);
    return true;
}

/* Tell whether a line is UTF-8. It is looked ahead, and each byte is looked at once. */
static inline bool is_text(Lines *lines, size_t at, size_t end)
{
    if (end <= lines->known)
        return true;
    size_t from = at > lines->known ? at : lines->known;
    size_t to = lines->size - from > MOST_AHEAD ? from + MOST_AHEAD : lines->size;
    lines->known = from + ascii_bytes(lines->body + from, to - from);
    if (end <= lines->known)
        return true;
    if (!is_utf8(lines->body + lines->known, end - lines->known))
        return false;
    lines->known = end;
    return true;
}

/* Read a line and keep its values. Return the offset after it, or 0 if it is left or there is no memory. */
static inline size_t take_line(Lines *lines, size_t at)
{
    Shape *latest = lines->latest, *expected = latest != NULL ? latest->follower : NULL;
    for (int tries = 0; expected != NULL && !expected->odd && tries < 2; expected = latest->other, tries++) {
        Row *row = room_for_row(lines, expected->count, expected->timed);
        if (row == NULL)
            return 0;
        size_t text_bytes, end = read_alike(lines, at, expected, row, &text_bytes);
        if (end) {
            if (!is_text(lines, at, end))
                return 0;
            follow(latest, expected);
            keep_row(lines, expected, row, text_bytes);
            return end;
        }
    }
    Line line;
    size_t end = read_line(lines, at, &line);
    return end && is_text(lines, at, end) && keep(lines, &line) ? end : 0;
}

/* Pass blank lines and comments from a start of a line on, up to one that is neither, or to `stop` or beyond. False if the
 * line at `*at` is left: it is too long, or begins with a carriage return. `*line` becomes the place after whitespace. */
static bool pass_blank_lines(const Lines *lines, size_t *at, size_t stop, size_t *line)
{
    const uint8_t *body = lines->body;
    size_t start = *at;
    while (start < stop) {
        size_t end = lines->size - start > MOST_LINE_BYTES ? start + MOST_LINE_BYTES : lines->size;
        size_t place = start;
        bool has_return = false;
        for (; place < end && (body[place] == ' ' || body[place] == '\t' || body[place] == '\r'); place++)
            has_return |= body[place] == '\r';
        if (place < end && body[place] == '#') {
            const uint8_t *newline = memchr(body + place, '\n', end - place);
            place = newline != NULL ? (size_t)(newline - body) : end;
        }
        *at = start;
        if (place == end) {
            if (end != lines->size)
                return false;
            *at = *line = end;
            return true;
        }
        if (body[place] != '\n') {
            *line = place;
            return !has_return;
        }
        start = place + 1;
    }
    *at = *line = start;
    return true;
}

size_t read_lines(Lines *lines, size_t at, size_t stop)
{
    if (lines->room == 0 && !make_room(lines)) {
        lines->no_memory = true;
        return at;
    }
    lines->is_left = false;
    lines->slow = 0;
    while (at < stop && lines->slow < MOST_SLOW) {
        size_t start, end = 0;
        if (lines->body[at] > '#') { /* nothing else begins a blank line or a comment */
            end = take_line(lines, at);
        } else if (pass_blank_lines(lines, &at, stop, &start)) {
            if (at >= stop)
                break;
            end = take_line(lines, start);
        }
        if (end == 0) {
            lines->is_left = !lines->is_full;
            break;
        }
        at = end;
    }
    return at;
}

void clear_lines(Lines *lines)
{
    arena_clear(&lines->arena);
    lines->table = NULL;
    lines->oldest = lines->newest = lines->latest = NULL;
    lines->is_full = false;
    lines->places = lines->shapes = lines->odd_shapes = lines->maps = lines->records = 0;
}

void free_lines(Lines *lines)
{
    arena_free(&lines->arena);
    free(lines->keys);
    free(lines->cells);
    *lines = (Lines){0};
}
