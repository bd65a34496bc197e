r"""InfluxDB line protocol -> columnar maps. This text is the reference of the accepted grammar.

    measurement[,tag_key=tag_value ...] field_key=field_value[,field_key=field_value ...] [timestamp]

InfluxDB's generations differ in details. Where they do, the public reference of v2 and v3 counts
(https://docs.influxdata.com/influxdb/v2/reference/syntax/line-protocol/), plus all that v1 takes in the same sense.
What a backslash means in names and tag values is chosen by the caller: `escapes` is "v1" for InfluxDB 1 and 2, or "v3".

- Lines end with a newline that is not inside a quoted string; spaces, tabs and carriage returns before it are ignored,
  so are leading spaces and tabs, blank lines, and lines that begin with `#`. Between the parts stands a space, which
  more spaces and tabs may follow.
- With "v1", a comma, a space or `=` is no delimiter if the character before it is a backslash, whatever is before that.
  That backslash is dropped (in measurements and field keys also one before `"`). Any other backslash stands for itself:
  two of them are two. So no name ends with a backslash.
- With "v3", backslashes are read from the left, each with the character after it. One before a comma, a space or a
  backslash (in tag keys, tag values and field keys also `=`) is dropped, and the character stays. Before anything else
  it stands for itself.
- No backslash keeps a newline in a line.
- A string is in double quotes and may hold anything, newlines too; `\"` is a quote, `\\` a backslash, any other
  backslash itself. Quotes anywhere else are part of the name or the tag value. There is no limit of 64 KB. Anything
  else (a tag with its key, a field that is no string, a timestamp) has less than 128 KB.
- Integers are digits with an optional `-` and the suffix `i` (-2^63 to 2^63-1), unsigned ones digits with the suffix
  `u` (0 to 2^64-1). Floats are digits with an optional `-`, an optional decimal point before, in or after them, and an
  optional exponent; the value is that of Python's `float()`. `+1`, `1_0`, `0x1`, `inf`, `nan`, and numbers whose float
  would be infinite are refused, as InfluxDB v1 does. A number without suffix is a float: `1` is 1.0.
- Booleans are t, T, true, True, TRUE, f, F, false, False, FALSE.
- A timestamp is digits with an optional `-`. It has at most 64 bits, and if the caller says its `unit`, in nanoseconds,
  too. Rows of lines without one have no `time`, and so get that of the WAL entry.
- Tags come in any order. A tag that is there twice, even with equal values, refuses the line (as in v1, v2 and
  v3); of a field that is there twice the last value counts (as in v1). A tag and a field of one name are both kept
  (`columns.field_column_names`). A tag called `time` refuses the line. A field called `time` is kept as `time_field`,
  where v1 would drop it silently.
- Unescaped commas and `=` in tag keys and values and field keys, and empty names and tag values, refuse the line. With
  "v3", tag values may have `=`.
- Names have 1 to 256 bytes and no control characters; everything is valid UTF-8.

A bad line is reported and none of it is written; the other lines are. A quote that opens a string needs a partner that
is followed by a comma, a space or the end of a line. Without one, only the line of the quote is bad, not later lines.

Rows of one shape (measurement, tags, fields and their types, with or without a timestamp) make a columnar map, in the
order of their lines. Integers and timestamps are packed with 9 bytes each, as floats are, so that readers step through
them; `types` tells which columns are unsigned.

`body.encode` is the way in. There are two paths: bodies of many lines are read by column (`by_column`), with those of
rare shapes apart (`singles`); others line by line (`by_line`), which is the reference. Both give the same rows and
errors, but not the same maps: rows of one shape may be in several. Where the native kernel is installed
(`arcpipe.native`), it reads the plain lines of all bodies, and the line reader the others (`by_kernel`).

Bounds: no path takes more than linear time, and no step keeps other threads from running for more than some 20 ms:
long parts are passed in windows (`grammar`, `long_lines`). Besides the result, memory is a multiple of `CHUNK_BYTES`
and of the longest line. Shapes and bad lines are bounded by the size of the body
(`arcpipe.codec.effort`); the size is bounded by the caller.

This package must not know HTTP or the WAL's envelope.
"""
