"""A scanner of the protobuf wire format that works by column: numpy over all messages of a level at once.

    buffer = Buffer(body)
    fields = scan(buffer, starts, ends, check)   # of many messages: owner, number, wire type and place of each field
    names = fields.of(1, LENGTH_DELIMITED)       # of one number, in order

It never builds an object for a message. Reference: https://protobuf.dev/programming-guides/encoding/

- Everything is proven before it is read: a field ends within its message, a varint has ten bytes at most.
- Unknown fields, and known ones of another wire type, are skipped, as the specification says.
- Groups are refused. Protobuf dropped them in 2008, and none of the formats here has any.
- Depth is the caller's: each level is a call of `scan`.
"""
