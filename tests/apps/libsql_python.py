"""libsql (with cursors and streams) and the old libsql-client against three nodes; the arguments are their URLs."""

import asyncio
import json
import sys
import time
import urllib.request

import libsql
import libsql_client

URLS = sys.argv[1:]


def status(url):
    with urllib.request.urlopen(f"{url}/v1/status") as answer:
        return json.load(answer)


def hand_off():
    names = [status(url)["node"] for url in URLS]
    to = names[(names.index(status(URLS[0])["primary"]["name"]) + 1) % len(names)]
    body = json.dumps({"to": to}).encode()
    request = urllib.request.Request(f"{URLS[0]}/v1/handoff", body, {"content-type": "application/json"})
    urllib.request.urlopen(request).read()


def is_seen(connect, query, expected):
    deadline = time.time() + 10
    while connect().execute(query).fetchall() != expected:
        assert time.time() < deadline, query
        time.sleep(0.05)


def connect(which):
    return libsql.connect(database=f"{URLS[which]}/dev/python.db", auth_token="")


first = connect(0)
first.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, v, w TEXT)")
first.commit()
for which in range(3):
    connection = connect(which)
    connection.execute("INSERT INTO t (v, w) VALUES (?, ?)", (2**30 + which, "ä"))
    connection.execute("INSERT INTO t (v, w) VALUES (?, ?)", (b"\x00\xff", None))
    connection.commit()
    connection.execute("DELETE FROM t")
    connection.rollback()
    try:
        connection.execute("INSERT INTO t (id) VALUES (1)")
        raise AssertionError("the id is taken")
    except ValueError as error:
        assert "CONSTRAINT" in str(error), error
    # The client goes on behind an error: every error has its code.
    connection.rollback()
    connection.execute("SELECT 1").fetchall()
    hand_off()
for which in range(3):
    is_seen(lambda: connect(which), "SELECT count(*), max(typeof(v)) FROM t", [(6, "integer")])
rows = connect(1).execute("SELECT v FROM t WHERE typeof(v) = 'integer' ORDER BY v").fetchall()
assert rows == [(2**30,), (2**30 + 1,), (2**30 + 2,)], rows
many = connect(2).execute(
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000) SELECT i FROM n"
)
assert len(many.fetchall()) == 20000


async def old_client():
    async with libsql_client.create_client(f"{URLS[1]}/dev/python.db/") as client:
        done = await client.batch(["CREATE TABLE o (v)", ("INSERT INTO o VALUES (?)", [5])])
        assert done[1].rows_affected == 1
        assert (await client.execute("SELECT count(*) FROM t")).rows[0][0] == 6
        try:
            await client.execute("SELEC")
            raise AssertionError("it does not compile")
        except libsql_client.LibsqlError as error:
            assert error.code == "SQL_INPUT_ERROR", error.code


asyncio.run(old_client())
print("  libsql and libsql-client through three nodes while the primary moved three times")
