# libSQL's clients, unmodified, on three voters of their own with planned moves of the primary in the middle:
# @libsql/client and Drizzle (npm), libsql and libsql-client (PyPI).
set -eu
if [ "${SKEIN_TEST_PLAIN:-0}" != 0 ]; then
    echo "skipped: libsql: asks for what a plain directory does not do"
    exit 77
fi
command -v npm >/dev/null || { echo "skipped: libsql: npm is not installed"; exit 77; }
modules="$CACHE/libsql" venv="$CACHE/libsql-py"
if [ ! -d "$modules/node_modules/drizzle-orm" ]; then
    mkdir -p "$modules"
    npm install --silent --no-audit --no-fund --prefix "$modules" @libsql/client@0.18.0 drizzle-orm@0.44 >npm.log 2>&1 || {
        echo "skipped: libsql: the packages of npm do not install: $(tail -n 1 npm.log)"
        exit 77
    }
fi
if ! "$venv/bin/python" -c 'import libsql, libsql_client' 2>/dev/null; then
    python3 -m venv "$venv" >/dev/null 2>&1 && "$venv/bin/pip" install -q libsql==0.1.11 libsql-client==0.3.1 >pip.log 2>&1 || {
        echo "skipped: libsql: the packages of PyPI do not install"
        exit 77
    }
fi
pids=""
finish() {
    status=$?
    for pid in $pids; do
        kill "$pid" 2>/dev/null || continue
        wait "$pid" 2>/dev/null || { echo "a node ended with $?"; tail -n 5 n?.err; status=1; }
    done
    umount -l "$PWD"/n?/mnt 2>/dev/null || true
    exit "$status"
}
trap finish EXIT
free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}
urls="" first=""
for name in n1 n2 n3; do
    port=$(free_port) http=$(free_port)
    mkdir -p "$name/mnt" "$name/data"
    if [ -z "$first" ]; then join=--bootstrap first="127.0.0.1:$port"; else join="--join=$first"; fi
    "$SKEIN" mount "$join" --name "$name" --mount "$PWD/$name/mnt" --data "$PWD/$name/data" --listen "127.0.0.1:$port" \
        --http "127.0.0.1:$http" --sql-create >"$name.out" 2>"$name.err" &
    pids="$pids $!" urls="$urls http://127.0.0.1:$http"
    for _ in $(seq 300); do
        grep -q '^mounted ' "$name.out" && break
        sleep 0.1
    done
    grep -q '^mounted ' "$name.out" || { cat "$name.err"; exit 1; }
done
set -- $urls
for _ in $(seq 300); do
    [ "$("$SKEIN" status --url "$1" | grep -c 'voter .*votes')" = 3 ] && break
    sleep 0.1
done
run() {
    echo "  $*"
    timeout -k 5 120 "$@" || { tail -n 5 n?.err; exit 1; }
}
ln -sfn "$modules/node_modules" node_modules
cp "$APPS/libsql_client.mjs" .
run node libsql_client.mjs "$@"
run "$venv/bin/python" "$APPS/libsql_python.py" "$@"
