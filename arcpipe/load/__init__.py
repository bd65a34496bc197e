"""`arcpipe load`: files -> requests whose keys follow from the files, so that loading again doubles nothing.

    for chunk in read(source, plan):     # formats: one module each
        delivery.deliver(message of chunk)

Rules that make it so:

- The digest of a file is SHA-256 of its bytes once decompressed: copies, and compressed ones, have the same.
- A file is cut into chunks by its content and the plan alone, never by what a read happened to give.
- The key of a chunk is `load-{digest}-{plan}-{place}`. `plan` is a hash of each option that changes what a chunk holds.
  `place` is the offset of its first byte, or the numbers of its first row and of its rows.
- A file that changes while it is read is given up before a chunk of the new content has a key of the old one.
- A chunk of rows that the server refuses is halved until the bad rows are alone. The halves are the same each time.

`source` opens and hashes files, `formats` chooses a reader, `chunks` has what readers make, `loader` sends it.
This package knows the client and the codecs, and nothing of terminals.
"""
