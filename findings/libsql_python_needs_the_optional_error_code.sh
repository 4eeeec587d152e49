#!/bin/sh
# PyPI libsql 0.1.11, SQL over HTTP (Hrana 3).
# Guess: an error of a statement without `code`, which Hrana's specification calls optional, is reported like any other,
#   and the next statement on the connection goes on with the baton of the answer.
# Seen: the client fails on the answer itself ("missing field `code`") and goes on with the baton it had before that
#   answer: the stream, and a transaction on it, is left behind. With `code` both are right.
set -eu
dir=$(mktemp -d)
cd "$dir"
python3 -m venv venv
venv/bin/pip -q --disable-pip-version-check install libsql==0.1.11
cat > server.py <<'PY'
import http.server
import json
import os
import sys

code = {"code": "SQLITE_ERROR"} if sys.argv[1] == "with" else {}
drawn = 0

class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        global drawn
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        print(request.get("baton"), flush=True)
        drawn += 1
        error = {"type": "error", "error": {"message": "no such table: t", **code}}
        closed = {"type": "ok", "response": {"type": "close"}}
        results = [closed if one["type"] == "close" else error for one in request["requests"]]
        body = json.dumps({"baton": f"baton-{drawn}", "base_url": None, "results": results}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
with open("port.new", "w") as file:
    file.write(str(server.server_port))
os.rename("port.new", "port")
server.serve_forever()
PY
cat > client.py <<'PY'
import sys
import libsql

# Of its own process: the client holds Python's lock while it waits for an answer.
db = libsql.connect(f"http://127.0.0.1:{sys.argv[1]}")
for _ in range(2):
    try:
        db.execute("select * from t")
    except Exception as error:
        known = [text for text in ("missing field `code`", "no such table") if text in str(error)]
        print(*known or [error])
PY
server=""
trap 'kill $server 2> /dev/null || true; rm -rf "$dir"' EXIT
for what in with without; do
    rm -f port
    python3 server.py $what > batons &
    server=$!
    for _ in $(seq 100); do [ -e port ] && break; sleep 0.1; done
    echo "$what code:"
    timeout 60 venv/bin/python client.py "$(cat port)" 2>&1
    echo "batons sent: $(head -n 2 batons | paste -sd ' ')"
    kill $server
done > seen
cat seen
diff seen - <<'EXPECTED'
with code:
no such table
no such table
batons sent: None baton-1
without code:
missing field `code`
missing field `code`
batons sent: None None
EXPECTED
