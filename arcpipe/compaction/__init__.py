"""Compaction: the small files of a closed hour become few large ones. No row is lost, and none is there twice.

    merge = choose(files of one folder)          # `files`: pure, from a listing
    plans.write(plan)                            # state "planned"
    outputs = rewrite(plan's inputs)             # to hidden names in the store
    verify(outputs)                              # read back: the same rows, column by column
    plans.write(committed)                       # THE COMMIT POINT: from here on it is only finished
    rename each output to its name; look that all are there
    delete the inputs; plans.remove()

**Whose files.** A node merges the files that it uploaded itself, and no others. Each name has the node's id. So two
nodes on one bucket never touch the same file: there is no claim that could expire, and no clock to compare. Only the
node can know that a file is final, because an unfinished batch puts its files again, under the same keys, after a
crash. Files of a batch that still has a file in `batches/` are left out. The store is listed first, and `batches/`
after that: a batch whose file is in the listing, and which is not in `batches/`, is over for ever. With tables and
`dedup` it is the files of all nodes: one that a table has is final, and of two merges of a file the table takes one.

**One at a time.** Whoever works holds an flock on `compaction/LOCK` in the WAL directory: the server's process, or
`arcpipe compact`. The kernel gives it back when the process is gone, and not when it is only slow. A process that was
stopped and wakes up still has it, so nobody has touched its plan.

**One plan.** `compaction/plan.json` is replaced durably (`arcpipe.durable`), and has a checksum. Whoever gets the lock
first takes the plan that is there to its end:

| state | what may be in the store | what is done |
|---|---|---|
| planned | hidden objects | they are deleted, then the plan is removed |
| committed | all outputs, hidden or renamed; inputs | the rest is renamed, inputs are deleted, then the plan |

No input is deleted before every output was seen under its name, with its size. If an output of a committed plan is
neither hidden nor renamed, somebody else removed it. Are all inputs there, the plan starts over: its outputs that are
visible are deleted first. Are they all gone, the merge was over, and only its plan was left. Are some gone, nothing is
deleted any more, and an operator decides.

**Late requests.** A request of a process that was killed may arrive at the store after its successor has begun.
A put makes a hidden object: it is removed by the next look at the hidden folder. A rename makes an output that the
successor makes, too. A delete concerns an input, whose key nobody uses again. A rename or a put may not
arrive after its object was merged again, so no file is an input before it is `Bounds.settle_seconds` old.

**Readers** see inputs and outputs both from the first rename to the last delete, and at no other time.

This package must not know HTTP, the WAL's format or the uploader. Of `batches/` it knows the names only.
"""
