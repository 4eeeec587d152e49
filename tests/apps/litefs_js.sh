# litefs-js (npm), unmodified: `.primary`, transaction numbers, its cookie and its middleware, and LiteFS's events.
set -eu
command -v npm >/dev/null || { echo "skipped: litefs_js: npm is not installed"; exit 77; }
[ -n "${PRIMARY_HTTP:-}" ] || { echo "skipped: litefs_js: a plain directory has no .primary"; exit 77; }
modules="$CACHE/litefs-js"
load="$modules/node_modules/litefs-js"
if [ ! -d "$load" ]; then
    mkdir -p "$modules"
    (cd "$modules" && timeout 300 npm install --silent --no-audit --no-fund litefs-js@2.0.2) >/dev/null 2>&1 || true
    [ -d "$load" ] || { echo "skipped: litefs_js: the package does not install"; exit 77; }
fi
MODULE="$load" DATABASE_FILENAME=litefs.db node "$APPS/litefs_js.mjs"
