# The sqlite3 shell: .import-like inserts, .backup, VACUUM, VACUUM INTO, integrity_check; read on the replica.
set -eu
command -v sqlite3 >/dev/null || { echo "skipped: sqlite_shell: sqlite3 is not installed"; exit 77; }

# Waits until the replica answers a query as expected.
reads() {
    for _ in $(seq 200); do
        [ "$(sqlite3 -cmd '.timeout 5000' "$REPLICA/$1" "$2" 2>/dev/null)" = "$3" ] && return 0
        sleep 0.1
    done
    echo "$1 on the replica: $2 gives $(sqlite3 "$REPLICA/$1" "$2" 2>&1), expected $3"
    return 1
}

for mode in wal delete truncate persist; do
    db="shell-$mode.db"
    sqlite3 "$PRIMARY/$db" "PRAGMA journal_mode=$mode;
        CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT);
        WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM n WHERE x<5000) INSERT INTO t SELECT x, hex(randomblob(50)) FROM n;
        DELETE FROM t WHERE id % 3 = 0; VACUUM;" >/dev/null
    [ "$(sqlite3 "$PRIMARY/$db" 'PRAGMA integrity_check')" = ok ]
    reads "$db" "SELECT count(*) FROM t" 3334
    [ "$(sqlite3 "$REPLICA/$db" 'PRAGMA integrity_check')" = ok ]

    sqlite3 "$PRIMARY/$db" ".backup '$PRIMARY/backup-$db'"
    sqlite3 "$PRIMARY/$db" "VACUUM INTO '$PRIMARY/into-$db'"
    sqlite3 "$REPLICA/$db" ".backup 'outside-$db'"
    for copy in "backup-$db" "into-$db"; do
        [ "$(sqlite3 "$PRIMARY/$copy" 'PRAGMA integrity_check')" = ok ]
        reads "$copy" "SELECT count(*) FROM t" 3334
    done
    expected=$(sqlite3 "$PRIMARY/$db" .dump | sha256sum)
    for copy in "$REPLICA/$db" "$REPLICA/backup-$db" "$REPLICA/into-$db" "outside-$db"; do
        [ "$(sqlite3 "$copy" .dump | sha256sum)" = "$expected" ] || { echo "$copy differs"; exit 1; }
    done
done
if [ "$PRIMARY" != "$REPLICA" ]; then
    said=$(sqlite3 "$REPLICA/shell-wal.db" "DELETE FROM t" 2>&1) && { echo "the replica accepted a write"; exit 1; }
    case $said in *readonly*) ;; *) echo "the replica says: $said"; exit 1 ;; esac
fi
