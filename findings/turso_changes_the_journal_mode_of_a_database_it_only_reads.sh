#!/bin/sh
# pyturso 0.8.3 (PyPI), SQLite as Python has it.
# Guess: Turso's engine, which takes SQLite's files, leaves a rollback-mode database as it is while it only reads.
# Seen: connect() alone, before any statement, rewrites the header to WAL mode and makes an empty -wal. SQLite in another
#   process is then told "database is locked" even for reading, and a second process with Turso's engine cannot open it,
#   until the first one's connection object is collected: close() lets go of no lock. The database stays in WAL mode.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" -q --disable-pip-version-check install pyturso==0.8.3
cd "$dir"
"$dir/venv/bin/python" - > seen <<'PY'
import subprocess
import sys
import turso

# Each look is a process of its own: closing a file would let go of the POSIX locks this process has on it.
def elsewhere(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    return (done.stdout + done.stderr).strip().splitlines()[-1]

def header():
    return elsewhere("header = open('app.db', 'rb').read(20); print(header[18], header[19])")

def read_by_sqlite():
    return elsewhere(
        "import sqlite3\n"
        "db = sqlite3.connect('app.db', timeout=0.2)\n"
        "try: print('rows', db.execute('select count(*) from t').fetchone()[0])\n"
        "except sqlite3.OperationalError as error: print(error)")

def read_by_turso():
    return elsewhere(
        "import turso\n"
        "try: print('rows', list(turso.connect('app.db').execute('select count(*) from t'))[0][0])\n"
        "except Exception as error: print('refused' if 'another process' in str(error) else error)")

elsewhere("import sqlite3; db = sqlite3.connect('app.db'); db.execute('create table t(v)'); db.commit(); print('made')")
print("before:", header(), "/", read_by_sqlite())
db = turso.connect("app.db")
print("connected:", header(), "/ SQLite:", read_by_sqlite(), "/ Turso:", read_by_turso())
db.close()
print("closed:", header(), "/", read_by_sqlite())
del db
print("collected:", header(), "/", read_by_sqlite())
PY
cat seen
diff seen - <<'EXPECTED'
before: 1 1 / rows 0
connected: 2 2 / SQLite: database is locked / Turso: refused
closed: 2 2 / database is locked
collected: 2 2 / rows 0
EXPECTED
