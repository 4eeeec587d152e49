"""The history of a torture run: what it records, and how it is written and read.

A history is a directory of files with one JSON object a line. Each process writes files of its own, so that a kill cuts
at most the last line. Times are CLOCK_MONOTONIC in seconds: one clock for all processes, which no fault changes.

    plan.json     {"databases": {NAME: {"kind", "promise", ...}}, "nodes": [...]}: what is written and what it promises
    *.jsonl       records; "r" says what kind:
        try       a transaction before its COMMIT: client, seq, node, db, op, detail, n, prev, begin
        end       its answer: client, seq, outcome (ok, fail, unknown), error, t
        read      one read transaction of a ledger: client, conn, node, db, begin, t, n, tip, count, sum
        set       a change of a register is begun: client, seq, node, db, gen, begin (ended by "end")
        seen      one read of a register: client, node, db, begin, t, gen, whole, via
        pair      a transaction over two databases is begun: client, seq, node, dbs, begin (ended by "end")
        error     an error text: client, node, db, where, error, t
        claim     a node called itself primary: node, term, t
        position  what a position of a database contains: node, db, pos, sha
        fault     kind, node, begin, healed
        start     a daemon was started: node, begin, t (none: applications could not use its mount in time)
        stuck     the longest that one thread was in one wait of state D: process, thread, where, seconds
        broken    something that the run itself saw: what, t
        final     a database at the end, nobody writing: node, db, and its content, by its kind
"""
import json
import os
import time

ACCOUNTS = 8
START_BALANCE = 1000

# What a cluster may take at most, in seconds: until every ledger is written again after the last fault, until a node that
# was started can be used, and a thread's wait in the kernel that no signal ends (state D). An application's request waits
# for the quorum as long as commit_timeout besides.
WRITES_AGAIN_SECONDS = 30
COMES_BACK_SECONDS = 30
STUCK_SECONDS = 5
REQUEST_SECONDS = 5


def now():
    """The time of all records."""
    return time.monotonic()


class Recorder:
    """A file of the history, written line by line."""

    def __init__(self, directory, name):
        self.out = open(os.path.join(directory, name + ".jsonl"), "a", buffering=1)

    def write(self, record, **fields):
        """Adds a record."""
        self.out.write(json.dumps({"r": record, **fields}) + "\n")


def lines(path, start=0):
    """The whole lines of a file from a byte on, and where they end."""
    with open(path, "rb") as source:
        source.seek(start)
        data = source.read()
    end = data.rfind(b"\n") + 1
    return [json.loads(line) for line in data[:end].splitlines() if line], start + end


def load(directory):
    """The plan and all records of a history."""
    with open(os.path.join(directory, "plan.json")) as source:
        plan = json.load(source)
    records = []
    for name in sorted(os.listdir(directory)):
        if name.endswith(".jsonl"):
            records.extend(lines(os.path.join(directory, name))[0])
    return plan, records
