#!/bin/sh
# npm @libsql/client 0.18.0, PyPI libsql 0.1.11: two clients of one protocol (Hrana over HTTP).
# Guess: a server that gives each database a path, http://host/db/one, is reached below that path by both.
# Seen: the JavaScript client resolves the route against the URL, so without a slash at the end the name of the database
#   is lost and all databases are one, without an error; the Python client appends the route with or without a slash.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip -q --disable-pip-version-check install libsql==0.1.11
npm init -y > /dev/null
npm install --silent --no-audit --no-fund @libsql/client@0.18.0 libsql@0.5.29 > /dev/null
cat > server.py <<'PY'
import http.server

class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers.get("content-length", 0)))
        print(self.path, flush=True)
        self.send_response(404)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
open("port.new", "w").write(str(server.server_port))
import os
os.rename("port.new", "port")
server.serve_forever()
PY
python3 server.py >> paths &
server=$!
trap 'kill $server; rm -rf "$dir"' EXIT
for _ in $(seq 100); do [ -e port ] && break; sleep 0.1; done
port=$(cat port)
for path in /db/one /db/one/; do
    echo "# JavaScript $path" >> paths
    node --input-type=module -e "
        import { createClient } from '@libsql/client';
        await createClient({ url: 'http://127.0.0.1:$port$path' }).execute('select 1').catch(() => {});"
    echo "# Python $path" >> paths
    venv/bin/python -c "
import libsql
try: libsql.connect('http://127.0.0.1:$port$path').execute('select 1')
except Exception: pass" 2> /dev/null
done
uniq paths > seen
cat seen
diff seen - <<'EXPECTED'
# JavaScript /db/one
/db/v2/pipeline
# Python /db/one
/db/one/v3/pipeline
# JavaScript /db/one/
/db/one/v2/pipeline
# Python /db/one/
/db/one/v3/pipeline
EXPECTED
