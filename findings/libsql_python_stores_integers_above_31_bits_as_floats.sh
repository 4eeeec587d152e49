#!/bin/sh
# PyPI libsql 0.1.11, against the sqlite3 module of Python's standard library.
# Guess: a Python int is bound as SQLite's 64-bit INTEGER, as the standard library does; one that does not fit is an error.
# Seen: an int of more than 31 bits is bound as REAL. Without an error an id of 53 bits and more (a snowflake, a hash, a
#   time in nanoseconds) is stored rounded, and in a column without a type, or compared with one, it is another value.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip -q --disable-pip-version-check install libsql==0.1.11
venv/bin/python - > seen <<'PY'
import sqlite3

import libsql

for module in (sqlite3, libsql):
    connection = module.connect(":memory:")
    for number in (2**31 - 1, 2**31, 2**53 + 1, 2**63 - 1):
        found = connection.execute("SELECT typeof(?), ?", (number, number)).fetchone()
        print(module.__name__, number, *found)
PY
cat seen
diff seen - <<'EXPECTED'
sqlite3 2147483647 integer 2147483647
sqlite3 2147483648 integer 2147483648
sqlite3 9007199254740993 integer 9007199254740993
sqlite3 9223372036854775807 integer 9223372036854775807
libsql 2147483647 integer 2147483647
libsql 2147483648 real 2147483648.0
libsql 9007199254740993 real 9007199254740992.0
libsql 9223372036854775807 real 9.223372036854776e+18
EXPECTED
