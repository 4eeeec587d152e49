"""A small web application on SQLite: numbered notes by topic. python3 notes.py PORT DATABASE NODE

GET /notes/TOPIC    the largest number of a note, and which node answers, as JSON
POST /notes/TOPIC   adds a note with the number in the body, whether there is one or not
"""
import json
import socket
import sqlite3
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT, DATABASE, NODE = int(sys.argv[1]), sys.argv[2], sys.argv[3]
local = threading.local()


def connection():
    if not hasattr(local, "db"):
        local.db = sqlite3.connect(DATABASE, timeout=5, isolation_level=None)
        # A commit returns before it is replicated: the hard case for who reads elsewhere.
        local.db.execute("PRAGMA synchronous=NORMAL")
    return local.db


class Notes(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30

    def do_GET(self):
        topic = self.path.rsplit("/", 1)[-1]
        self.answer("SELECT max(n) FROM note WHERE topic = ?", (topic,))

    def do_POST(self):
        topic = self.path.rsplit("/", 1)[-1]
        n = int(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        self.answer("INSERT INTO note VALUES(?, ?, ?) RETURNING n", (topic, n, NODE))

    def answer(self, statement, values):
        try:
            rows = connection().execute(statement, values).fetchall()
            self.say(200, {"last": rows[0][0] or 0, "node": NODE})
        except sqlite3.Error as error:
            self.say(500, {"error": str(error), "node": NODE})

    def say(self, status, document):
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def finish_request(self, request, client_address):
        # Head and body are two writes: without this the second waits for the first one's acknowledgement.
        request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().finish_request(request, client_address)


Server(("127.0.0.1", PORT), Notes).serve_forever()
