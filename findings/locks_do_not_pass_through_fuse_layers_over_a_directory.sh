#!/bin/sh
# Debian 12: bindfs 1.14.7, unionfs-fuse 1.0, mergerfs 2.33.5 (with their defaults), each over a directory with a SQLite database; /dev/fuse, root.
# Guess: a lock that SQLite takes through such a mount keeps out a SQLite that opens the same file in the directory behind.
# Seen: with all three each side has a lock table of its own: while one process is in a write transaction through the mount,
#   another gets the write lock in the directory. In WAL mode a commit made through the mount is then lost: the process
#   in the directory believes that it closes the last connection, checkpoints, and removes the log below the other.
#   (One that mirrors a live database over FUSE has to be the only way to it.)
set -eu
dir=$(mktemp -d)
trap 'cd /; for mount in "$dir"/*/mount; do umount -l "$mount" 2> /dev/null || true; done; rm -rf "$dir"' EXIT
chmod 755 "$dir"
cd "$dir"
for package in bindfs=1.14.7-1 unionfs-fuse=1.0-1+b1 mergerfs=2.33.5-1 libfuse2=2.9.9-6+b1; do
    apt-get -qq -o APT::Sandbox::User=root download "$package"
done
for package in *.deb; do dpkg -x "$package" root; done
LD_LIBRARY_PATH=$(dirname "$(find "$dir/root" -name 'libfuse.so.2' | head -n 1)")
export LD_LIBRARY_PATH
cat > probe.py <<'PY'
import sqlite3
import subprocess
import sys

name = sys.argv[1]

def elsewhere(directory, code):
    code = f"import sqlite3\ndb = sqlite3.connect('{directory}/app.db', isolation_level=None, timeout=0.2)\n{code}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60).stdout.strip()

begin = "try: db.execute('begin immediate'); db.execute('rollback'); print('write lock taken')\nexcept sqlite3.OperationalError as error: print(error)"
db = sqlite3.connect(f"{name}/mount/app.db", isolation_level=None)
db.execute("pragma journal_mode=wal")
db.execute("create table t(v)")
db.execute("begin immediate")
db.execute("insert into t values(1)")
print(f"{name}: through the mount: {elsewhere(name + '/mount', begin)}; behind it: {elsewhere(name + '/directory', begin)}", end="; ")
db.execute("commit")
rows = elsewhere(name + "/mount", "print(db.execute('select count(*) from t').fetchone()[0])")
print("the commit is", "there" if rows == "1" else "lost")
PY
for name in bindfs unionfs-fuse mergerfs; do
    mkdir -p "$name/directory" "$name/mount"
    option=""
    [ "$name" = unionfs-fuse ] && option="=RW"
    "root/usr/bin/$name" "$name/directory$option" "$name/mount"
    python3 probe.py "$name"
done > seen
cat seen
diff seen - <<'EXPECTED'
bindfs: through the mount: database is locked; behind it: write lock taken; the commit is lost
unionfs-fuse: through the mount: database is locked; behind it: write lock taken; the commit is lost
mergerfs: through the mount: database is locked; behind it: write lock taken; the commit is lost
EXPECTED
