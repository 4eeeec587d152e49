#!/bin/sh
# SQLite 3.54.1 (PyPI apsw 3.54.1.0).
# Guess: both ways to copy a live WAL database, the backup API and VACUUM INTO, give a database in WAL mode.
# Seen: the copy of the backup API, and what sqlite3_serialize() gives, name WAL in bytes 18 and 19 of their header; the
#   copy of VACUUM INTO names the rollback journal. Who restores by renaming the latter over the former changes the
#   journal mode.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" -q --disable-pip-version-check install apsw==3.54.1.0
cd "$dir"
"$dir/venv/bin/python" - > seen <<'PY'
import apsw

source = apsw.Connection("source.db")
source.execute("pragma journal_mode=wal; create table t(v); insert into t values(1)").fetchall()
copy = apsw.Connection("backup.db")
with copy.backup("main", source, "main") as backup:
    backup.step()
copy.close()
source.execute("vacuum into 'vacuum.db'")

def versions(header):
    return header[18], header[19]

for name in "source.db", "backup.db", "vacuum.db":
    with open(name, "rb") as file:
        print(name, *versions(file.read(100)))
print("serialize", *versions(source.serialize("main")))
PY
cat seen
diff seen - <<'EXPECTED'
source.db 2 2
backup.db 2 2
vacuum.db 1 1
serialize 2 2
EXPECTED
