"""Arrow IPC streams: checked when they come, kept as they came, converted when they are uploaded.

`framing` walks the messages of a stream without decoding them, and tells how large they become. `check` proves that a
stream can be converted. `times` reads the column of the times. `columns` makes the columnar maps that other bodies
have from the start, for whoever reads entries one by one. This package must not know HTTP or files.
"""
