r"""JSON and CSV -> columnar maps. This text is the reference of the accepted bodies.

- NDJSON: each line is a JSON object (RFC 8259), and each object is a record. Blank lines are ignored.
- JSON: an array of objects, or one object. Objects one per line are read as NDJSON.
- CSV (RFC 4180): the first record has the names; each other one is a record with as many cells. Cells are separated by
  commas, and may be in double quotes. Blank lines are ignored.

All are UTF-8, with or without a byte order mark. `Roles` says which fields are the time, the measurement and the tags.
All other members of an object, and all other cells, are fields.

- A time is what MessagePack may have as one (`codec.messagepack.times`): a number, or ISO 8601 text. A record without
  one, or with null, gets the time of its WAL entry.
- A JSON number without fraction and exponent is an integer, and keeps all of its digits: one of more than 64 bits is
  kept as text. Any other number is a float. One that is too large for a float refuses the record.
- An object or array as a value is kept as it is, for `_rescued_data`. null is no value.
- Of a member that is there twice the last one counts.
- A cell is a number if it is one in JSON, a boolean if it is true, True, TRUE, false, False or FALSE, no value if it is
  empty, and else text. Quotes do not matter. So `007` is text. Cells of tags are always text.
- `Roles.types` says the types of fields in advance. A cell that is not of its type refuses the record; a JSON value
  that is not keeps its own type.
- A field with the name of a tag, or called `time` without being the time, gets another column, as in line protocol.
- Names have 1 to 256 bytes and no control characters. A record has at least one field or tag. A JSON one has at most
  `MAX_RECORD_BYTES`, and a cell at most 128 KB.

A bad record is reported with its line (in a JSON array: its place, from 1) and none of it is written; the others are.
An array that does not end, and a CSV whose names are not usable, are refused as a whole.

Records of one shape (measurement, tags, names of fields) become columnar maps, in their order. No step takes more than
some milliseconds, and no path more than linear time. This package must not know HTTP or the WAL's envelope.
"""
