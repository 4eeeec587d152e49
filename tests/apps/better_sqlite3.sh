# better-sqlite3 (npm) in WAL mode: transactions on the primary, a live reader on the replica.
set -eu
command -v npm >/dev/null || { echo "skipped: better_sqlite3: npm is not installed"; exit 77; }
modules="$CACHE/better-sqlite3"
load="$modules/node_modules/better-sqlite3"
ready() { [ -d "$load" ] && node -e "new (require('$load'))(':memory:')" 2>/dev/null; }
if ! ready; then
    mkdir -p "$modules"
    # Version 11 has prebuilt binaries for the Node.js of Debian; where they do not download, it compiles.
    for version in 11 12; do
        (cd "$modules" && timeout 300 npm install --silent --no-audit --no-fund "better-sqlite3@$version") >/dev/null 2>&1 || true
        ready && break
    done
    ready || { echo "skipped: better_sqlite3: the package does not install"; exit 77; }
fi
MODULE="$load" node "$APPS/better_sqlite3.js"
