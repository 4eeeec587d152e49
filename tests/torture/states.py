#!/usr/bin/env python3
"""Makes the databases of a round, and writes down what a node's mount shows of them at its end.

    states.py found ORDERS     states.py look ORDERS     ORDERS: mount, history, node, plan
"""
import json
import os
import sqlite3
import sys
import urllib.parse

from client import look
from history import ACCOUNTS, START_BALANCE, Recorder, now

LEDGER = f"""
CREATE TABLE tip(id INTEGER PRIMARY KEY CHECK(id = 1), n INTEGER, client TEXT, seq INTEGER);
CREATE TABLE account(id INTEGER PRIMARY KEY, balance INTEGER NOT NULL);
CREATE TABLE log(n INTEGER PRIMARY KEY, client TEXT, seq INTEGER, op TEXT, detail TEXT, body);
INSERT INTO tip VALUES(1, 0, '', 0);
WITH RECURSIVE c(x) AS (SELECT 0 UNION ALL SELECT x+1 FROM c WHERE x < {ACCOUNTS - 1})
    INSERT INTO account SELECT x, {START_BALANCE} FROM c;
"""


def found(orders):
    """Makes ledgers and pairs that are not there yet; registers are made by their clients."""
    for db, settings in orders["plan"].items():
        if settings["kind"] == "register":
            continue
        connection = sqlite3.connect(os.path.join(orders["mount"], db), isolation_level=None, timeout=20)
        if connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
            connection.close()
            continue
        connection.execute(f"PRAGMA page_size={settings.get('page_size', 4096)}")
        connection.execute(f"PRAGMA journal_mode={settings['journal']}")
        tables = LEDGER if settings["kind"] == "ledger" else "CREATE TABLE t(client TEXT, seq INTEGER);"
        connection.executescript(f"BEGIN IMMEDIATE; {tables} COMMIT;")
        connection.close()


def read_state(connection, kind):
    """The content of a database, in the words of the history."""
    problem = connection.execute("PRAGMA integrity_check").fetchone()[0]
    if problem != "ok":
        raise sqlite3.DatabaseError(f"database disk image is malformed: integrity_check: {problem}")
    if kind == "ledger":
        rows = connection.execute("SELECT n, client, seq, op, detail FROM log ORDER BY n").fetchall()
        balances = [row[0] for row in connection.execute("SELECT balance FROM account ORDER BY id")]
        tip = connection.execute("SELECT n, client, seq FROM tip").fetchone()
        return {"rows": rows, "balances": balances, "tip": tip}
    if kind == "pair":
        return {"rows": connection.execute("SELECT client, seq FROM t").fetchall()}
    if not connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
        # Its name was made, and its first transaction never ended: as good as not there.
        return {"gen": 0}
    gen, whole = look(connection)
    return {"gen": gen if whole else f"torn {gen}"}


def look_at_all(orders):
    """Every database as a new connection sees it on the mount."""
    record = Recorder(orders["history"], f"final-{orders['node']}")
    for db, settings in orders["plan"].items():
        path = os.path.join(orders["mount"], db)
        try:
            if settings["kind"] == "register" and not os.path.exists(path):
                state = {"gen": 0}
            else:
                uri = "file:" + urllib.parse.quote(path) + "?mode=rw"
                connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=20)
                state = read_state(connection, settings["kind"])
                connection.close()
            record.write("final", node=orders["node"], db=db, **state)
        except sqlite3.Error as error:
            record.write("broken", what=f"database unreadable at the end: {db} on {orders['node']}: {error}", t=now())


if __name__ == "__main__":
    {"found": found, "look": look_at_all}[sys.argv[1]](json.loads(sys.argv[2]))
