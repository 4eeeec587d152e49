#!/bin/sh
# SQLite 3.54.1 (PyPI apsw 3.54.1.0).
# Guess: the first salt of a WAL grows by one each time a writer begins the log anew, so a reader of the log that finds
#   a salt two ahead knows that it has missed a whole log.
# Seen: PASSIVE, FULL and RESTART checkpoints, however many, move it by one at the next commit. Each TRUNCATE checkpoint
#   moves it by one itself, also of a log that is empty already: after n of them the next log is n ahead, and nothing
#   was missed.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" -q --disable-pip-version-check install apsw==3.54.1.0
cd "$dir"
"$dir/venv/bin/python" - > seen <<'PY'
import struct
import apsw

db = apsw.Connection("app.db")
db.execute("pragma journal_mode=wal; create table t(v)").fetchall()

def salt():
    with open("app.db-wal", "rb") as wal:
        return struct.unpack(">I", wal.read(32)[16:20])[0]

def steps(mode, times):
    db.execute("insert into t values(1)")
    before = salt()
    for _ in range(times):
        db.execute(f"pragma wal_checkpoint({mode})").fetchall()
    db.execute("insert into t values(1)")
    return (salt() - before) % 2**32

for mode in "passive", "full", "restart", "truncate":
    print(mode, *(steps(mode, times) for times in (1, 2, 5)))
PY
cat seen
diff seen - <<'EXPECTED'
passive 1 1 1
full 1 1 1
restart 1 1 1
truncate 1 2 5
EXPECTED
