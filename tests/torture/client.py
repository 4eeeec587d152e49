#!/usr/bin/env python3
"""One application of a torture run: a process that works on the databases of one node's mount until SIGTERM.

    client.py KIND ORDERS      ORDERS is a JSON object: client, node, mount, history, seed, http, databases, scratch

It keeps each connection for as long as it lives, whatever errors it gets, and records what it does (history.py).
"""
import hashlib
import http.client
import json
import os
import random
import signal
import sqlite3
import sys
import time
import urllib.parse

from history import ACCOUNTS, Recorder, now

BIG_BYTES = 1_500_000


class Over:
    """Set by SIGTERM. A plain flag: a handler that took a lock could wait for the thread that it interrupts."""

    is_set = False


def end_soon(*_):
    Over.is_set = True



def quoted(name):
    return urllib.parse.quote(name, safe="")


class Client:
    """What all kinds share: orders, records, numbers, errors."""

    def __init__(self, orders):
        self.orders = orders
        self.name, self.node = orders["client"], orders["node"]
        self.random = random.Random(orders["seed"])
        self.record = Recorder(orders["history"], self.name)
        self.seq = 0
        self.gen = orders.get("first", 1) - 1
        self.connections = {}

    def path(self, db):
        return os.path.join(self.orders["mount"], db)

    def connect(self, db, synchronous=None):
        """The one connection to a database; made at the first use and kept."""
        found = self.connections.get(db)
        if found is None:
            uri = "file:" + urllib.parse.quote(self.path(db)) + "?mode=rw"
            found = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=self.random.choice([0.3, 1, 3]))
            if synchronous:
                found.execute(f"PRAGMA synchronous={synchronous}")
            self.connections[db] = found
        return found

    def error(self, db, where, error):
        """Counts an error; gives its text."""
        name = getattr(error, "sqlite_errorname", None)
        text = f"{name}: {error}" if name else str(error) or type(error).__name__
        self.record.write("error", client=self.name, node=self.node, db=db, where=where, error=text, t=now())
        return text

    def end(self, outcome, error=None):
        self.record.write("end", client=self.name, seq=self.seq, outcome=outcome, error=error, t=now())

    def request(self, method, path, body=None):
        """A request to the API of this client's node."""
        connection = http.client.HTTPConnection(self.orders["http"], timeout=15)
        try:
            connection.request(method, path, body=body)
            reply = connection.getresponse()
            return reply.status, reply.headers, reply.read()
        finally:
            connection.close()

    def run(self):
        while not Over.is_set:
            time.sleep(self.step())


class Writer(Client):
    """Writes one ledger: every transaction appends one row and moves the tip."""

    def step(self):
        db = self.orders["databases"][0]
        settings = self.orders["plan"][db]
        self.seq += 1
        try:
            connection = self.connect(db, settings["synchronous"])
        except sqlite3.Error as error:
            self.error(db, "open", error)
            return 0.2
        return self.transact(connection, db, settings)

    def transact(self, connection, db, settings):
        if self.random.random() < 0.01:
            return self.maintain(connection, db)
        begin = now()
        if not take_back(connection):
            self.error(db, "rollback", RuntimeError("an earlier transaction stays open"))
            return 0.2
        op, detail = self.draw(settings)
        try:
            connection.execute("BEGIN IMMEDIATE")
            number, client, seq = connection.execute("SELECT n, client, seq FROM tip").fetchone()
            self.perform(connection, op, detail, number + 1)
        except sqlite3.Error as error:
            self.error(db, "write", error)
            take_back(connection)
            # Nobody but the primary can write: the others ask now and then.
            return self.random.uniform(0.1, 0.4)
        self.record.write("try", client=self.name, seq=self.seq, node=self.node, db=db, op=op, detail=detail,
                          n=number + 1, prev=[client, seq], begin=begin)
        try:
            connection.execute("COMMIT")
            self.end("ok")
        except sqlite3.Error as error:
            text = self.error(db, "commit", error)
            # A busy COMMIT leaves the transaction open, so that it can be taken back for certain.
            busy = "locked" in str(error) and connection.in_transaction and take_back(connection)
            self.end("fail" if busy else "unknown", text)
            take_back(connection)
            return 0.1
        return self.random.uniform(*settings.get("pause", (0.005, 0.03)))

    def maintain(self, connection, db):
        """A checkpoint or VACUUM, as applications do now and then."""
        words = self.random.choice(["VACUUM", *(f"PRAGMA wal_checkpoint({how})" for how in ("PASSIVE", "RESTART", "TRUNCATE"))])
        try:
            connection.execute(words).fetchall()
        except sqlite3.Error as error:
            self.error(db, words, error)
        return 0.05

    def draw(self, settings):
        dice = self.random.random()
        if dice < 0.02 and settings.get("big", True):
            return "big", BIG_BYTES
        if dice < 0.06:
            return "schema", self.random.choice(["create", "alter", "drop"])
        if dice < 0.5:
            source, target = self.random.sample(range(ACCOUNTS), 2)
            return "transfer", [source, target, self.random.randint(1, 50)]
        return "insert", None

    def perform(self, connection, op, detail, number):
        body = "~" * self.random.choice([10, 100, 1000, 3000])
        if op == "transfer":
            source, target, amount = detail
            connection.execute("UPDATE account SET balance=balance-? WHERE id=?", (amount, source))
            connection.execute("UPDATE account SET balance=balance+? WHERE id=?", (amount, target))
        elif op == "big":
            # One large row at a time, so that a database does not grow with the length of a run.
            connection.execute("UPDATE log SET body='' WHERE op='big'")
            body = self.random.randbytes(detail)
        elif op == "schema":
            change_schema(connection, detail, number)
        connection.execute("INSERT INTO log VALUES(?,?,?,?,?,?)",
                           (number, self.name, self.seq, op, json.dumps(detail), body))
        connection.execute("UPDATE tip SET n=?, client=?, seq=?", (number, self.name, self.seq))


def change_schema(connection, what, number):
    extra = [row[0] for row in connection.execute("SELECT name FROM sqlite_schema WHERE name GLOB 'extra*'")]
    if what == "create" and len(extra) < 5:
        connection.execute(f"CREATE TABLE extra{number}(a, b)")
        connection.execute(f"INSERT INTO extra{number} VALUES(1, 2)")
    elif what == "alter" and extra:
        connection.execute(f"ALTER TABLE {extra[0]} ADD COLUMN c{number} DEFAULT 7")
    elif what == "drop" and extra:
        connection.execute(f"DROP TABLE {extra[0]}")


def take_back(connection):
    """Whether no transaction is open, if need be after a ROLLBACK."""
    try:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        return True
    except sqlite3.Error:
        return not connection.in_transaction


class Reader(Client):
    """Reads all ledgers of a node, with one connection each for as long as it lives."""

    def step(self):
        for db in self.orders["databases"]:
            begin = now()
            try:
                connection = self.connect(db)
                connection.execute("BEGIN")
                n, client, seq = connection.execute("SELECT n, client, seq FROM tip").fetchone()
                if self.random.random() < 0.05:
                    time.sleep(self.random.uniform(0, 0.5))
                count = connection.execute("SELECT count(*) FROM log").fetchone()[0]
                total = connection.execute("SELECT sum(balance) FROM account").fetchone()[0]
                connection.execute("COMMIT")
            except (sqlite3.Error, TypeError) as error:
                self.error(db, "read", error)
                if db in self.connections:
                    take_back(self.connections[db])
                continue
            self.record.write("read", client=self.name, conn=1, node=self.node, db=db, begin=begin, t=now(), n=n,
                              tip=[client, seq], count=count, sum=total)
        return self.random.uniform(0.02, 0.08)


class Register(Client):
    """A database that is replaced as a whole: generation after generation."""

    def make(self, path, gen, journal, page_size):
        """A database file of a generation: as many equal rows as the generation says."""
        connection = sqlite3.connect(path, isolation_level=None, timeout=1)
        try:
            connection.execute(f"PRAGMA page_size={page_size}")
            connection.execute(f"PRAGMA journal_mode={journal}")
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("CREATE TABLE g(gen, pad)")
            rows = rows_of(gen)
            connection.executemany("INSERT INTO g VALUES(?, ?)", ((gen, "x" * 200) for _ in range(rows)))
            connection.execute("COMMIT")
        finally:
            connection.close()

    def begin(self, db, gen):
        self.seq += 1
        self.record.write("set", client=self.name, seq=self.seq, node=self.node, db=db, gen=gen, begin=now())


def rows_of(gen):
    return 20 + gen * 37 % 300


def look(connection):
    """The generation a register shows, and whether it is whole."""
    rows = connection.execute("SELECT gen, count(*) FROM g GROUP BY gen").fetchall()
    if len(rows) != 1:
        return None, False
    gen, count = rows[0]
    return gen, count == rows_of(gen)


class Importer(Register):
    """Imports databases over one another through the API."""

    def step(self):
        db = self.orders["databases"][0]
        self.gen += 1
        local = os.path.join(self.orders["scratch"], f"{self.name}.db")
        for suffix in ["", "-wal", "-shm", "-journal"]:
            if os.path.exists(local + suffix):
                os.unlink(local + suffix)
        self.make(local, self.gen, self.random.choice(["wal", "delete"]), self.random.choice([1024, 8192] + [4096] * 6))
        with open(local, "rb") as source:
            body = source.read()
        self.begin(db, self.gen)
        try:
            status, _, answer = self.request("PUT", f"/v1/databases/{quoted(db)}", body)
            if status < 300:
                self.end("ok")
                return self.random.uniform(0.1, 0.4)
            if status == 421:
                answer = self.elsewhere(db, answer, body)
                if answer is None:
                    return self.random.uniform(0.1, 0.4)
            self.end("unknown", self.error(db, "import", RuntimeError(f"{status} {title(answer)}")))
        except OSError as error:
            self.end("unknown", self.error(db, "import", error))
        except http.client.HTTPException as error:
            self.end("unknown", self.error(db, "import", error))
        return 0.3

    def elsewhere(self, db, answer, body):
        """Asks the primary that the answer names; none where it took the import."""
        primary = json.loads(answer).get("primary")
        if not primary:
            return answer
        connection = http.client.HTTPConnection(urllib.parse.urlparse(primary).netloc, timeout=15)
        try:
            connection.request("PUT", f"/v1/databases/{quoted(db)}", body=body)
            reply = connection.getresponse()
            text = reply.read()
            if reply.status >= 300:
                return text
        finally:
            connection.close()
        self.end("ok")
        return None


def title(answer):
    try:
        problem = json.loads(answer)
        return problem.get("detail") or problem.get("title")
    except ValueError:
        return answer[:100].decode(errors="replace")


class Exporter(Client):
    """Exports databases of one node through the API and looks whether each is whole."""

    def step(self):
        db = self.random.choice(self.orders["databases"])
        begin = now()
        try:
            status, headers, body = self.request("GET", f"/v1/databases/{quoted(db)}/export")
        except (OSError, http.client.HTTPException) as error:
            self.error(db, "export", error)
            return 0.5
        if status != 200:
            self.error(db, "export", RuntimeError(f"{status} {title(body)}"))
            return 0.5
        self.record.write("position", node=self.node, db=db, pos=headers["skein-pos"],
                          sha=hashlib.sha256(body).hexdigest(), size=len(body), t=now())
        local = os.path.join(self.orders["scratch"], f"{self.name}.db")
        with open(local, "wb") as out:
            out.write(body)
        try:
            connection = sqlite3.connect(local, isolation_level=None)
            problem = connection.execute("PRAGMA integrity_check").fetchone()[0]
            if problem != "ok":
                raise sqlite3.DatabaseError(f"database disk image is malformed: integrity_check: {problem}")
            if self.orders["plan"][db]["kind"] == "register":
                gen, whole = look(connection)
                self.record.write("seen", client=self.name, node=self.node, db=db, begin=begin, t=now(), gen=gen,
                                  whole=whole, via="export")
            connection.close()
        except sqlite3.Error as error:
            keep = local + f".{self.seq}.broken"
            os.replace(local, keep)
            self.error(db, "exported file", RuntimeError(f"{error} (position {headers['skein-pos']}, {keep})"))
        return self.random.uniform(0.2, 0.6)


class Replacer(Register):
    """Makes databases anew in every way: beside and renamed over, dropped and made again, changed in place."""

    def step(self):
        db = self.random.choice(self.orders["databases"])
        self.gen += 1
        how = self.random.choices(["rename", "drop", "make", "change"], [4, 2, 2, 4])[0]
        there = os.path.exists(self.path(db))
        if how == "change" and there:
            return self.change(db)
        if how == "drop" and there:
            return self.settle(db, -self.gen, "unlink", lambda: os.unlink(self.path(db)))
        if how == "make" and not there:
            return self.settle(db, self.gen, "make", lambda: self.make_one(self.path(db)))
        beside = self.path(f"tmp-{self.name}-{self.gen}.db")
        try:
            self.make_one(beside)
        except (sqlite3.Error, OSError) as error:
            self.error(db, "make beside", error)
            self.clean(beside)
            return 0.3
        pause = self.settle(db, self.gen, "rename", lambda: os.rename(beside, self.path(db)))
        self.clean(beside)
        return pause

    def make_one(self, path):
        self.make(path, self.gen, self.random.choice(["wal", "delete"]), 4096)

    def settle(self, db, gen, where, act):
        """One change of a name; whatever error it ends with, it may have been done."""
        self.begin(db, gen)
        try:
            act()
            self.end("ok")
            return self.random.uniform(0.02, 0.3)
        except (OSError, sqlite3.Error) as error:
            self.end("unknown", self.error(db, where, error))
            return 0.3

    def change(self, db):
        """A transaction that makes another generation of the rows."""
        try:
            uri = "file:" + urllib.parse.quote(self.path(db)) + "?mode=rw"
            connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=0.5)
        except sqlite3.Error as error:
            self.error(db, "open", error)
            return 0.3
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("DELETE FROM g")
            connection.executemany("INSERT INTO g VALUES(?, 'y')", [(self.gen,)] * rows_of(self.gen))
            return self.settle(db, self.gen, "commit", lambda: connection.execute("COMMIT"))
        except sqlite3.Error as error:
            self.error(db, "write", error)
            return 0.3
        finally:
            connection.close()

    def clean(self, path):
        if os.path.exists(path):
            try:
                os.unlink(path)
            except OSError as error:
                self.error(os.path.basename(path), "unlink", error)


class Watcher(Client):
    """Reads the registers of a node: imported ones with one connection, replaced ones with a new one each time."""

    def __init__(self, orders):
        super().__init__(orders)
        self.files = {}

    def step(self):
        for db in self.orders["databases"]:
            begin = now()
            if db not in self.connections:
                self.files[db] = self.file_number(db)
                if self.files[db] is None:
                    continue
            try:
                gen, whole = look(self.connect(db))
            except sqlite3.Error as error:
                if self.is_orphan(db):
                    continue
                if "no such table" not in str(error):
                    self.error(db, "watch", error)
                if self.random.random() < 0.1:
                    self.forget(db)
                continue
            if self.is_orphan(db):
                continue
            # A database without a row is one whose first transaction is still to come.
            if gen is not None or whole:
                self.record.write("seen", client=self.name, node=self.node, db=db, begin=begin, t=now(), gen=gen,
                                  whole=whole, via="mount")
            if self.orders["plan"][db].get("replaced"):
                self.forget(db)
        return self.random.uniform(0.05, 0.15)

    def file_number(self, db):
        try:
            return os.stat(self.path(db)).st_ino
        except OSError:
            return None

    def is_orphan(self, db):
        """Whether the file that the connection has open has lost its name; then it is closed.

        SQLite finds -wal and -shm by name: one that was opened before the file was dropped and made anew combines two
        databases (sqlite.org/howtocorrupt.html, 2.4), on every file system.
        """
        if self.file_number(db) == self.files[db]:
            return False
        self.forget(db)
        return True

    def forget(self, db):
        connection = self.connections.pop(db, None)
        if connection:
            try:
                connection.close()
            except sqlite3.Error:
                pass


class Pair(Client):
    """Transactions over two attached databases."""

    def step(self):
        one, two = self.orders["databases"]
        try:
            if one not in self.connections:
                self.connect(one).execute("ATTACH ? AS b", (self.path(two),))
        except sqlite3.Error as error:
            self.error(one, "attach", error)
            self.connections.pop(one, None)
            return 0.3
        connection = self.connections[one]
        if not take_back(connection):
            return 0.2
        self.seq += 1
        try:
            connection.execute("BEGIN IMMEDIATE")
            for schema in ["main", "b"]:
                connection.execute(f"INSERT INTO {schema}.t VALUES(?, ?)", (self.name, self.seq))
        except sqlite3.Error as error:
            self.error(one, "write", error)
            take_back(connection)
            return 0.3
        self.record.write("pair", client=self.name, seq=self.seq, node=self.node, dbs=[one, two], begin=now())
        try:
            connection.execute("COMMIT")
            self.end("ok")
        except sqlite3.Error as error:
            text = self.error(one, "commit", error)
            busy = "locked" in str(error) and connection.in_transaction and take_back(connection)
            self.end("fail" if busy else "unknown", text)
            take_back(connection)
        return self.random.uniform(0.05, 0.2)


KINDS = {"writer": Writer, "reader": Reader, "importer": Importer, "exporter": Exporter, "replacer": Replacer,
         "watcher": Watcher, "pair": Pair}


def main():
    kind, orders = sys.argv[1], json.loads(sys.argv[2])
    signal.signal(signal.SIGTERM, end_soon)
    client = KINDS[kind](orders)
    client.run()
    if client.random.random() < 0.5:
        for connection in client.connections.values():
            try:
                connection.close()
            except sqlite3.Error:
                pass
    # The others end as a crash does: with everything still open.
    os._exit(0)


if __name__ == "__main__":
    main()
