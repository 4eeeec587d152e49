#!/bin/sh
# SQLite 3.54.1 (PyPI apsw 3.54.1.0).
# Guess: after a TRUNCATE checkpoint the first salt of the next log is the last one plus one, whoever writes it, as the
#   file format says ("salt-1: random integer incremented with each checkpoint"): a reader of the log can tell a newer
#   log from an older one by it.
# Seen: so it is where the connection that checkpointed writes next. A connection that has not checkpointed itself draws
#   the salt at random, each time: which of two logs is the newer one cannot be told from their salts.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" -q --disable-pip-version-check install apsw==3.54.1.0
cd "$dir"
"$dir/venv/bin/python" - > seen <<'PY'
import struct
import apsw

def salt(name):
    with open(f"{name}-wal", "rb") as wal:
        return struct.unpack(">I", wal.read(32)[16:20])[0]

def steps(name, who):
    one = apsw.Connection(name)
    one.execute("pragma journal_mode=wal; create table t(v)").fetchall()
    other = apsw.Connection(name)
    other.execute("select * from t").fetchall()
    writer = {"same": one, "other": other}[who]
    found = []
    for _ in range(3):
        before = salt(name)
        one.execute("pragma wal_checkpoint(truncate)").fetchall()
        writer.execute("insert into t values(1)")
        step = (salt(name) - before) % 2**32
        found.append(str(step) if step < 1000 else "random")
    return found

for who in "same", "other":
    print(who, "connection:", *steps(f"{who}.db", who))
PY
cat seen
diff seen - <<'EXPECTED'
same connection: 1 1 1
other connection: random random random
EXPECTED
