#include <string.h>

#include "packing.h"
#include "rows.h"
#include "values.h"

static inline uint8_t *copy_value(uint8_t *to, const uint8_t *from, size_t size)
{
    if (size == 9) { /* most numbers and times */
        memcpy(to, from, 9);
    } else if (size >= 8 && size <= 16) {
        memcpy(to, from, 8);
        memcpy(to + size - 8, from + size - 8, 8);
    } else if (size >= 4 && size < 8) {
        memcpy(to, from, 4);
        memcpy(to + size - 4, from + size - 4, 4);
    } else {
        memcpy(to, from, size);
    }
    return to + size;
}

/* Put the array of a column's values. */
static uint8_t *put_values(uint8_t *to, const Rows *rows, const RowShape *shape, uint32_t number)
{
    to = put_array(to, shape->rows);
    for (uint32_t row = shape->first; row != NO_ROW; row = rows->rows[row].next) {
        const Cell *cell = &rows->cells[rows->rows[row].cells + number];
        to = copy_value(to, rows->data + cell->start, cell->size);
    }
    return to;
}

/* Tell whether a row of the shape has a time: one that all rows lack is no column. */
static bool is_timed(const Rows *rows, const RowShape *shape)
{
    if (shape->time == NO_VALUE)
        return false;
    for (uint32_t row = shape->first; row != NO_ROW; row = rows->rows[row].next)
        if (rows->data[rows->cells[rows->rows[row].cells + shape->time].start] != NIL)
            return true;
    return false;
}

static uint32_t tags_of(const RowShape *shape)
{
    uint32_t tags = 0;
    for (uint32_t number = 0; number < shape->count; number++)
        tags += shape->values[number].role == OF_HOST || shape->values[number].role == OF_TAG;
    return tags;
}

size_t row_map_bytes(const Rows *rows, const RowShape *shape)
{
    uint32_t tags = tags_of(shape);
    size_t bytes = count_bytes(2) + text_bytes(1) + text_bytes(shape->measurement.size) + text_bytes(7), columns = 0;
    for (uint32_t number = 0; number < shape->count; number++) {
        const RowValue *value = &shape->values[number];
        if (value->role == OF_TIME && !is_timed(rows, shape))
            continue;
        size_t name = text_bytes(value->role == OF_TIME ? 4 : value->name.size);
        bytes += name + count_bytes(shape->rows) + value->bytes;
        bytes += value->role == OF_HOST || value->role == OF_TAG ? name : 0;
        columns++;
    }
    return bytes + count_bytes(columns) + (tags ? text_bytes(4) + count_bytes(tags) : 0);
}

static uint8_t *put_times(uint8_t *to, const Rows *rows, const RowShape *shape, const uint8_t *map, RowTimes *times)
{
    to = put_text(to, "time", 4);
    const uint8_t *values = to + count_bytes(shape->rows);
    to = put_values(to, rows, shape, shape->time);
    *times = (RowTimes){(size_t)(values - map), (size_t)(to - map), 0};
    size_t width = value_size(values, (size_t)(to - values));
    uint8_t differs = 0;
    if (!has_fixed_size(*values) || width * shape->rows != (size_t)(to - values))
        return to;
    for (const uint8_t *at = values; at < to; at += width)
        differs |= *at ^ *values;
    times->width = differs ? 0 : width;
    return to;
}

void put_row_map(const Rows *rows, const RowShape *shape, uint8_t *to, RowTimes *times)
{
    const uint8_t *map = to;
    uint32_t tags = tags_of(shape);
    bool timed = is_timed(rows, shape);
    *times = (RowTimes){0, 0, 0};
    to = put_map(to, tags ? 3 : 2);
    to = put_text(put_text(to, "m", 1), shape->measurement.text, shape->measurement.size);
    to = put_map(put_text(to, "columns", 7), shape->count - (shape->time != NO_VALUE && !timed));
    if (timed)
        to = put_times(to, rows, shape, map, times);
    for (Role role = OF_HOST; role <= OF_FIELD; role++)
        for (uint32_t number = 0; number < shape->count; number++) {
            const RowValue *value = &shape->values[number];
            if (value->role == role)
                to = put_values(put_text(to, value->name.text, value->name.size), rows, shape, number);
        }
    if (!tags)
        return;
    to = put_array(put_text(to, "tags", 4), tags);
    for (Role role = OF_HOST; role <= OF_TAG; role++)
        for (uint32_t number = 0; number < shape->count; number++)
            if (shape->values[number].role == role)
                to = put_text(to, shape->values[number].name.text, shape->values[number].name.size);
}
