#!/usr/bin/env python3
"""Torture: rounds of applications on every mount, and faults among them; scripts/torture runs it.

Each round makes databases, starts client processes (client.py), lets faults happen (faults.py), waits until every ledger
is written again, ends the clients, and lets a separate program (checker.py) judge the history. A round that breaks a rule
ends the run, and its directory is kept. The seed draws faults, clients and their work; the moments are the machine's.
"""
import argparse
import dataclasses
import hashlib
import http.client
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback

import faults
import history
from cluster import Broken, Cluster, faketime
from figures import Figures, plain
from history import WRITES_AGAIN_SECONDS
from stuck import Stuck, waits_in, write_stacks

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
CONVERGES_SECONDS = 30
CLIENT_ENDS_SECONDS = 20


@dataclasses.dataclass
class Shape:
    voters: int
    replicas: int
    passthrough: bool = True
    disk_mib: int = 0
    clocks: bool = False


SHAPES = {"1r": Shape(1, 1), "3": Shape(3, 0), "5": Shape(5, 0), "3r2": Shape(3, 2),
          "nopass": Shape(3, 0, passthrough=False), "small": Shape(3, 0, disk_mib=420),
          "clock": Shape(3, 2, clocks=True)}
LEDGERS = {"full": ("wal", "FULL", "stays"), "normal": ("wal", "NORMAL", "traceable"), "delete": ("delete", "FULL", "stays"),
           "off": ("wal", "OFF", "traceable"), "truncate-off": ("truncate", "OFF", "stays"),
           "persist": ("persist", "FULL", "stays")}


# What nodes log at ERROR although nothing is wrong with them.
EXPECTED_ERRORS = [
    # A primary that lost its role with NORMAL commits nobody else had: it says so and keeps them.
    "transactions that were not replicated before another node became primary are discarded and kept",
    # A disk that is full is a fault of the run.
    "No space left on device",
    "the disk is nearly full: commits are refused until there is more space",
    # A database that was dropped and made anew while the node could not follow: the node cannot tell this from a loss.
    r"this node was ahead of the node it fetches the database from: what it had is kept db=(live|tmp)-",
    # fuser says it when the application that asked was killed meanwhile.
    "fuser::reply: Failed to send FUSE reply: No such file or directory",
]


class Run:
    """A cluster, the round it is in, and what is known of it."""

    def __init__(self, arguments, shape, directory, figures):
        self.arguments, self.dir = arguments, directory
        self.shape_name, self.shape = shape, SHAPES[shape]
        self.figures, self.number, self.clients, self.history = figures, 0, [], None
        self.plan, self.wiped, self.kept, self.claimed, self.strikes = {}, False, set(), [], []
        self.random = random.Random(arguments.seed)
        # The order of faults depends on nothing else that is drawn.
        self.bag, self.bag_random = [], random.Random(f"{arguments.seed}/{shape}/faults")
        self.cluster = Cluster(directory, os.path.abspath(arguments.skein), self.shape, self.claim)

    def claim(self, node, term):
        """A node called itself primary."""
        self.claimed.append({"node": node, "term": term, "t": history.now()})

    def draw_fault(self):
        """Each kind once, in a drawn order, then each once again."""
        if not self.bag:
            self.bag = drawn_from(self.arguments, self.shape)
            self.bag_random.shuffle(self.bag)
        return self.bag.pop()

    def play(self):
        """One round; the broken rules, as lines."""
        self.number += 1
        self.random = random.Random(f"{self.arguments.seed}/{self.number}")
        strikes = self.random.choice([1, 1, 2, 3])
        self.history = os.path.join(self.dir, f"round-{self.number}")
        os.makedirs(os.path.join(self.history, "scratch"))
        self.record = history.Recorder(self.history, "run")
        self.kept, self.wiped, self.claimed, self.strikes = set(), False, self.claimed[-1:], []
        self.stuck = Stuck(self)
        self.stuck.start()
        try:
            self.make_databases()
            self.start_clients(self.cluster.nodes)
            for _ in range(strikes):
                self.strike()
            self.end_clients(self.cluster.nodes)
            self.converge()
            self.look()
        except Broken as broken:
            self.record.write("broken", what=str(broken), t=history.now())
            # Before a debugger stops the nodes and makes others wait for them.
            self.stuck.end()
            self.read_logs()
            self.write_all_stacks()
            self.skip_logs()
        except OSError as error:
            self.record.write("broken", what=f"the run itself failed: {traceback.format_exc(limit=-2)}{error}", t=history.now())
        finally:
            self.stuck.end()
        try:
            self.kill_clients(self.cluster.nodes)
        except Broken as broken:
            self.record.write("broken", what=str(broken), t=history.now())
        return self.judge()

    def make_databases(self):
        """Chooses the round's databases, makes them on the primary, and waits until every node has them."""
        chosen = ["full", "normal", *self.random.sample(["delete", "off", "truncate-off", "persist"], 1)]
        self.plan = {}
        for name in chosen:
            journal, synchronous, promise = LEDGERS[name]
            self.plan[f"{name}-{self.number}.db"] = {
                "kind": "ledger", "journal": journal, "synchronous": synchronous, "promise": promise,
                "page_size": self.random.choice([1024, 4096, 4096, 16384])}
        if self.random.random() < 0.5:
            for half in "ab":
                self.plan[f"pair-{half}-{self.number}.db"] = {"kind": "pair", "journal": "delete", "promise": "stays"}
        if self.random.random() < 0.6:
            self.plan[f"import-{self.number}.db"] = {"kind": "register", "promise": "stays"}
        for node in self.cluster.voters():
            for letter in "abcd" if self.random.random() < 0.5 else "":
                name = f"live-{letter}-{node.name}-{self.number}.db"
                self.plan[name] = {"kind": "register", "promise": "stays", "replaced": True, "by": node.name}
        self.write_plan()
        deadline = time.monotonic() + WRITES_AGAIN_SECONDS
        while True:
            try:
                self.state_program("found", self.cluster.primary())
                break
            except Broken:
                # On a machine with other work the primary may move meanwhile.
                if time.monotonic() > deadline:
                    raise
        self.converge()

    def write_plan(self):
        with open(os.path.join(self.history, "plan.json"), "w") as out:
            json.dump({"databases": self.plan, "nodes": [node.name for node in self.cluster.nodes]}, out)

    def state_program(self, what, node):
        orders = {"mount": node.mount, "history": self.history, "node": node.name, "plan": self.plan}
        command = ["timeout", "-s", "KILL", "60", sys.executable, os.path.join(HERE, "states.py"), what, json.dumps(orders)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            raise Broken(f"databases cannot be {'made' if what == 'found' else 'read'}: on {node.name}: {done.stdout[-300:]}")

    def start_clients(self, nodes):
        """Starts the applications of these nodes."""
        of_kind = lambda kind: [db for db, settings in self.plan.items() if settings["kind"] == kind]
        ledgers, registers, pair = of_kind("ledger"), of_kind("register"), of_kind("pair")
        imported = [db for db in registers if not self.plan[db].get("replaced")]
        for node in nodes:
            if node.role == "voter":
                for db in ledgers:
                    self.start_client("writer", node, [db])
                if pair and node.name in ("n1", "n2"):
                    self.start_client("pair", node, pair)
                own = [db for db in registers if self.plan[db].get("by") == node.name]
                if own:
                    self.start_client("replacer", node, own)
            if node.name == "n1" and imported:
                self.start_client("importer", node, imported)
            self.start_client("reader", node, ledgers)
            if registers:
                self.start_client("watcher", node, registers)
            if node.name in ("n2", "r1"):
                self.start_client("exporter", node, ledgers + imported)

    def start_client(self, kind, node, databases):
        name = f"{kind}{len(self.clients)}-{node.name}"
        # A database's one importer or replacer counts on where the one before it stopped.
        orders = {"client": name, "node": node.name, "mount": node.mount, "history": self.history, "http": node.http,
                  "seed": self.random.random(), "databases": databases, "plan": self.plan,
                  "scratch": os.path.join(self.history, "scratch"), "first": 1 + 100_000 * self.starts_of(databases, kind)}
        within = self.cluster.network.inside(node.name) if kind in ("importer", "exporter") else []
        log = open(os.path.join(self.history, name + ".stderr"), "w")
        process = subprocess.Popen([*within, sys.executable, os.path.join(HERE, "client.py"), kind, json.dumps(orders)],
                                   stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.clients.append({"node": node.name, "kind": kind, "name": name, "process": process, "databases": databases})

    def starts_of(self, databases, kind):
        return sum(client["databases"] == databases and client["kind"] == kind for client in self.clients)

    def living(self, nodes):
        names = [node.name for node in nodes]
        return [client for client in self.clients if client["node"] in names and client["process"].returncode is None]

    def end_clients(self, nodes):
        """Asks the applications of these nodes to end, and waits until they have."""
        for client in self.living(nodes):
            client["process"].send_signal(signal.SIGTERM)
        deadline = time.monotonic() + CLIENT_ENDS_SECONDS
        for client in self.living(nodes):
            try:
                code = client["process"].wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise Broken(f"client hangs: {client['name']} for {CLIENT_ENDS_SECONDS} s: {waits_in(client['process'].pid)}")
            # One that was told to end before it had begun ends by the signal.
            if code not in (0, -signal.SIGTERM):
                with open(os.path.join(self.history, client["name"] + ".stderr")) as log:
                    raise Broken(f"client failed: {client['name']} ended with {code}: {log.read()[-400:]}")

    def kill_clients(self, nodes):
        living = self.living(nodes)
        for client in living:
            client["process"].kill()
        for client in living:
            try:
                client["process"].wait(10)
            except subprocess.TimeoutExpired:
                raise Broken(f"client cannot be killed: {client['name']}: {waits_in(client['process'].pid)}")

    def strike(self):
        """Lets one fault happen, and waits until every ledger is written again."""
        time.sleep(self.random.uniform(0.5, 2))
        fault = self.draw_fault()
        if self.shape.clocks:
            faults.set_clocks(self)
        begin = history.now()
        print(f"    {fault.__name__}", end="", flush=True)
        self.strikes.append((fault.__name__, begin, None))
        fault(self)
        healed = history.now()
        self.record.write("fault", kind=fault.__name__, begin=begin, healed=healed)
        waiting = {db for db, settings in self.plan.items() if settings["kind"] == "ledger"}
        follow = Follow(self.history)
        while waiting and history.now() < healed + WRITES_AGAIN_SECONDS:
            waiting -= follow.acknowledged(since=healed)
            time.sleep(0.05)
        took = history.now() - healed
        self.figures.recoveries[(self.shape_name, fault.__name__)].append(took)
        if not waiting:
            self.strikes[-1] = (fault.__name__, begin, healed + took)
        print(f" {took:.1f} s;", end="", flush=True)
        for node in self.cluster.nodes:
            if not node.runs():
                raise Broken(f"node ended by itself: {node.name} after {fault.__name__}: {node.last_lines(3)}")
        if waiting:
            raise Broken(f"no write after a fault: {sorted(waiting)} within {WRITES_AGAIN_SECONDS} s of {fault.__name__}")

    def converge(self):
        """Waits until all nodes have the same databases at the same positions; nobody writes."""
        deadline, said = time.monotonic() + CONVERGES_SECONDS, {}
        # A NORMAL commit is replicated a moment after it is acknowledged: what nodes said before that does not count.
        after, steady = time.monotonic() + 0.5, 0
        while time.monotonic() < deadline:
            said = {}
            for node in self.cluster.nodes:
                at, status = node.status or (0, None)
                status = status if at > max(after, time.monotonic() - 2) else None
                said[node.name] = status and {db["name"]: (db["txid"], db["checksum"]) for db in status["databases"]}
            first, *others = said.values()
            if first is not None and all(other == first for other in others) and set(self.made()) <= set(first):
                steady += 1
                if steady == 5:
                    return
            else:
                steady = 0
            time.sleep(0.1)
        differ = {db for has in said.values() for db in has or {} if any((other or {}).get(db) != has[db] for other in said.values())}
        shown = {db: {node: (has or {}).get(db) for node, has in said.items()} for db in sorted(differ)[:3]}
        silent = {node.name: node.silence for node in self.cluster.nodes if said[node.name] is None}
        raise Broken(f"nodes do not converge: within {CONVERGES_SECONDS} s: {shown}, no answer: {silent}")

    def write_all_stacks(self):
        """Where every thread of every node is: in the kernel, and in the program where there is a debugger."""
        pids = [node.process.pid for node in self.cluster.nodes if node.process]
        write_stacks(os.path.join(self.history, "stacks.txt"), pids)
        if shutil.which("gdb"):
            with open(os.path.join(self.history, "gdb.txt"), "w") as out:
                for pid in pids:
                    subprocess.run(["timeout", "60", "gdb", "-p", str(pid), "-batch", "-ex", "thread apply all bt 30"],
                                   stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)

    def made(self):
        return [db for db, settings in self.plan.items() if settings["kind"] != "register"]

    def look(self):
        """Writes down what every mount shows, and what every node exports."""
        for node in self.cluster.nodes:
            self.state_program("look", node)
        checksums = threading.Thread(target=self.export_all, daemon=True)
        checksums.start()
        checksums.join(120)

    def export_all(self):
        record = history.Recorder(self.history, "exports")
        for node in self.cluster.nodes:
            self.cluster.network.enter(node.name)
            for db in self.made():
                status = 0
                for _ in range(3):
                    try:
                        status, headers, body = node.get(f"/v1/databases/{db}/export", timeout=20)
                    except (OSError, http.client.HTTPException) as error:
                        body = str(error).encode()
                    if status == 200:
                        break
                    record.write("error", client="run", node=node.name, db=db, where="export at the end",
                                 error=f"{status} {body[:200].decode(errors='replace')}", t=history.now())
                    time.sleep(1)
                if status != 200:
                    record.write("broken", what=f"no export: of {db} from {node.name}: {status} {body[:200]}", t=history.now())
                    continue
                record.write("position", node=node.name, db=db, pos=headers["skein-pos"],
                             sha=hashlib.sha256(body).hexdigest(), t=history.now())

    def note_discarded(self):
        """Remembers of which databases some node has kept what it dropped."""
        for node in self.cluster.nodes:
            for name in node.discarded():
                self.kept |= {db for db in self.plan if name.startswith(db)}

    def judge(self):
        """Lets the checker judge the round, and counts what the round was like."""
        self.note_discarded()
        for db, settings in self.plan.items():
            settings["discarded"] = self.wiped or db in self.kept
        self.write_plan()
        for claim in self.claimed:
            self.record.write("claim", **claim)
        for start in self.cluster.starts:
            self.record.write("start", **start)
        self.cluster.starts.clear()
        self.read_logs()
        self.count()
        done = subprocess.run([sys.executable, os.path.join(HERE, "checker.py"), self.history],
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        broken = done.stdout.splitlines() or (["the checker failed"] if done.returncode else [])
        self.figures.count_round(self.shape_name, [kind for kind, _, _ in self.strikes], not broken)
        return broken

    def read_logs(self):
        for node in self.cluster.nodes:
            for line in node.new_log_lines():
                text = re.sub(r"^\S+Z\s+", "", line.strip())
                if "panicked at" in line:
                    self.record.write("broken", what=f"panic: {node.name}: {line}", t=history.now())
                elif text.startswith("ERROR") and not any(re.search(part, text) for part in EXPECTED_ERRORS):
                    self.record.write("broken", what=f"ERROR in a log: {node.name}: {text[:300]}", t=history.now())
                if text.startswith(("ERROR", "WARN")):
                    self.figures.warnings[plain(text)[:200]] += 1

    def skip_logs(self):
        """What the nodes log because a debugger held them says nothing."""
        for node in self.cluster.nodes:
            node.new_log_lines()

    def count(self):
        _, records = history.load(self.history)
        what = {}
        for record in records:
            if record["r"] in ("try", "set", "pair"):
                db = record.get("db") or "pair"
                what[(record["client"], record["seq"])] = re.match(r"(truncate-off|[a-z]+)", db).group(0)
        for record in records:
            if record["r"] == "end":
                key = what.pop((record["client"], record["seq"]), None)
                if key:
                    self.figures.outcomes[(key, record["outcome"])] += 1
            elif record["r"] == "error":
                self.figures.count_error(record["where"], record["error"])
            elif record["r"] in ("read", "seen"):
                self.figures.outcomes[("reads", "ok")] += 1
        for key in what.values():
            self.figures.outcomes[(key, "unknown")] += 1
        nodes = {(record["client"], record["seq"]): record["node"] for record in records if record["r"] == "try"}
        acknowledged = [(record["t"], nodes[(record["client"], record["seq"])]) for record in records
                        if record["r"] == "end" and record["outcome"] == "ok" and (record["client"], record["seq"]) in nodes]
        for kind, begin, end in [strike for strike in self.strikes if strike[2] is not None]:
            self.figures.count_fault(self.shape_name, kind, begin, end, acknowledged)


class Follow:
    """Reads a history while it grows."""

    def __init__(self, directory):
        self.dir, self.read, self.tries = directory, {}, {}

    def acknowledged(self, since):
        """Ledgers in which a transaction that began after a moment was acknowledged."""
        found = set()
        for name in os.listdir(self.dir):
            if not name.startswith("writer") or not name.endswith(".jsonl"):
                continue
            path = os.path.join(self.dir, name)
            if os.path.getsize(path) == self.read.get(name, 0):
                continue
            records, self.read[name] = history.lines(path, self.read.get(name, 0))
            for record in records:
                if record["r"] == "try":
                    self.tries[name] = record
                elif record["r"] == "end" and record["outcome"] == "ok" and self.tries[name]["begin"] >= since:
                    found.add(self.tries[name]["db"])
        return found


def drawn_from(arguments, shape):
    """The faults that this run draws from in a shape; those of `--fault` that it can have."""
    kinds = [kind for kind in faults.of(shape) if kind.__name__ not in (arguments.without or [])]
    wanted = [kind for kind in kinds if not arguments.fault or kind.__name__ in arguments.fault]
    if not wanted:
        raise SystemExit("no fault is left: this shape has " + ", ".join(sorted({kind.__name__ for kind in faults.of(shape)})))
    return wanted


def missing(arguments):
    """Why it cannot run here; none where it can."""
    if os.geteuid() != 0:
        return "root is needed (network namespaces)"
    if not os.path.exists("/dev/fuse"):
        return "no /dev/fuse (--device /dev/fuse --cap-add SYS_ADMIN)"
    for program in ["ip", "nsenter", "timeout"]:
        if not shutil.which(program):
            return f"{program} is not installed"
    if not os.path.exists(arguments.skein):
        return f"{arguments.skein} is not built"
    if subprocess.run(["unshare", "--net", "true"], stderr=subprocess.DEVNULL).returncode:
        return "network namespaces are not allowed"
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1, help="draws faults, clients and their work")
    parser.add_argument("--minutes", type=float, help="no round of a shape begins later than this; 3 where neither is said")
    parser.add_argument("--rounds", type=int, help="rounds of each shape")
    parser.add_argument("--shape", default="3", help=f"one or several of {','.join(SHAPES)}, or all. r: replicas, nopass: "
                        "without passthrough, small: disks of a few hundred megabytes, clock: clocks jump before each fault")
    parser.add_argument("--fault", action="append", help="only this fault; may be given several times")
    parser.add_argument("--without", action="append", help="not this fault; may be given several times")
    parser.add_argument("--go-on", action="store_true", help="a new cluster after a round that broke a rule, instead of the end")
    parser.add_argument("--skein", default=os.path.join(ROOT, "target", "debug", "skein"), help="the program to torture")
    parser.add_argument("--keep", default=tempfile.gettempdir(), help="where the directories of broken rounds are kept")
    arguments = parser.parse_args()
    shapes = list(SHAPES) if arguments.shape == "all" else arguments.shape.split(",")
    unknown = [shape for shape in shapes if shape not in SHAPES]
    if unknown:
        parser.error(f"no shape {unknown[0]}: {', '.join(SHAPES)}, all")
    if arguments.rounds is None and arguments.minutes is None:
        arguments.minutes = 3
    reason = missing(arguments)
    if reason:
        print(f"skipped: torture: {reason}")
        return 0
    if not faketime():
        print("skipped: torture: clocks do not jump: libfaketime is not installed")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    figures, bad = Figures(), 0
    for shape in shapes:
        bad += torture(arguments, shape, figures)
        if bad and not arguments.go_on:
            break
    figures.print()
    print(f"\nrepeat: scripts/torture {' '.join(sys.argv[1:])}")
    print(f"{figures.all_passed()} passed, {bad} failed")
    return 1 if bad else 0


def torture(arguments, shape, figures):
    """Rounds of one shape until the time is over or they are done; how many were broken."""
    end = time.monotonic() + arguments.minutes * 60 if arguments.minutes else float("inf")
    bad, done = 0, 0
    more = lambda: time.monotonic() < end and (arguments.rounds is None or done < arguments.rounds)
    while more():
        directory = tempfile.mkdtemp(prefix="skein-torture-", dir=arguments.keep)
        run, broken = None, []
        try:
            run = Run(arguments, shape, directory, figures)
            run.number = done
            while more() and not broken:
                begin = time.monotonic()
                print(f"{shape} round {done + 1}:", end="", flush=True)
                broken = run.play()
                print(f" {'broken' if broken else 'ok'}, {time.monotonic() - begin:.0f} s", flush=True)
                done += 1
                if not broken:
                    shutil.rmtree(run.history)
        except Broken as error:
            broken = [str(error)]
            done += 1
        finally:
            if run:
                for client in run.clients:
                    client["process"].kill()
                run.cluster.remove()
            if not broken:
                shutil.rmtree(directory, ignore_errors=True)
        if broken:
            bad += 1
            print("\n".join(f"    {line}" for line in broken))
            print(f"kept: {directory}", flush=True)
            if not arguments.go_on:
                break
    return bad


if __name__ == "__main__":
    sys.exit(main())
