/* The lines of a body, one after the other. */
#include "lines.h"

#include <stdlib.h>
#include <string.h>

/* Keep the values of a line; false if they are left, or there is no memory. */
static bool keep(Lines *lines, const Line *line)
{
    Shape *shape = lines->latest != NULL ? lines->latest->follower : NULL;
    if (!line->as_expected) {
        shape = find_shape(lines, line);
        if (shape == NULL)
            return false;
        if (lines->latest != NULL)
            lines->latest->follower = shape;
    }
    lines->latest = shape;
    if (shape->odd)
        return false;
    size_t values = line->count + line->timed;
    Row *row = arena_take(&lines->arena, sizeof *row + values * sizeof *row->cells);
    if (row == NULL) {
        lines->no_memory = true;
        return false;
    }
    row->next = NULL;
    if (line->timed)
        row->cells[0] = lines->cells[line->count];
    memcpy(row->cells + line->timed, lines->cells, line->count * sizeof *row->cells);
    if (shape->last != NULL) {
        shape->last->next = row;
    } else {
        shape->first = row;
        lines->maps++;
    }
    shape->last = row;
    shape->rows++;
    shape->text_bytes += line->text_bytes;
    lines->records++;
    return true;
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
        Line line;
        if (pass_blank_lines(lines, &at, stop, &start)) {
            if (at >= stop)
                break;
            end = read_line(lines, start, lines->latest != NULL ? lines->latest->follower : NULL, &line);
        }
        if (end == 0 || !keep(lines, &line)) {
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
