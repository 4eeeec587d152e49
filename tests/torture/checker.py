#!/usr/bin/env python3
"""Judges the history of a torture run: the one definition of correct.

    checker.py DIRECTORY       exit code 0: nothing is wrong; 1: each broken rule is a line on stdout

The transactions of a ledger form a tree: each names the one that it found, and the ledger at the end names its last one.
What leads there is the chain: the history that counts. Promises of a ledger:

    stays      what was acknowledged is on the chain, and nobody reads what is not (FULL, rollback journals)
    traceable  what was acknowledged last on a node may be missing, where the node kept it in discarded/ (NORMAL, OFF)

Under both, no two branches are acknowledged at the same time, sums hold, and no reader sees less than before of what counts.
"""
import collections
import json
import re
import sys

from history import ACCOUNTS, COMES_BACK_SECONDS, START_BALANCE, STUCK_SECONDS, WRITES_AGAIN_SECONDS, load

DAMAGE = re.compile("malformed|not a database|SQLITE_CORRUPT|SQLITE_NOTADB", re.I)
SHOWN_MAX = 5


class Verdict:
    """The rules that were broken, and how often."""

    def __init__(self):
        self.broken = collections.OrderedDict()

    def add(self, rule, text):
        self.broken.setdefault(rule, []).append(text)

    def lines(self):
        for rule, texts in self.broken.items():
            for text in texts[:SHOWN_MAX]:
                yield f"{rule}: {text}"
            if len(texts) > SHOWN_MAX:
                yield f"{rule}: {len(texts) - SHOWN_MAX} more"


class Operations:
    """Tries, sets and pairs with their answers."""

    def __init__(self, records):
        self.by_id = {}
        for record in records:
            if record["r"] in ("try", "set", "pair"):
                self.by_id[(record["client"], record["seq"])] = dict(record, outcome="unknown", t=float("inf"))
        for record in records:
            if record["r"] == "end":
                op = self.by_id.get((record["client"], record["seq"]))
                if op:
                    op.update(outcome=record["outcome"], t=record["t"])

    def of(self, kind, db):
        return [op for op in self.by_id.values() if op["r"] == kind and op.get("db") == db]


def show(op):
    return f"{op['client']}/{op['seq']} on {op['node']} n={op.get('n')} ({op['outcome']}, {op['begin']:.3f} to {op['t']:.3f})"


def check_ledger(verdict, db, settings, operations, records, finals):
    """One ledger: tries and reads against the rows at the end."""
    ops = {(op["client"], op["seq"]): op for op in operations.of("try", db)}
    rows = [tuple(row) for row in finals[0]["rows"]]
    for other in finals[1:]:
        if other["rows"] != finals[0]["rows"] or other["balances"] != finals[0]["balances"]:
            verdict.add("nodes differ at the end", f"{db}: {finals[0]['node']} has {len(rows)} rows, {other['node']} {len(other['rows'])}")
    chain = check_rows(verdict, db, ops, rows)
    check_sums(verdict, db, rows, finals[0])
    tree = Tree(ops, chain)
    for key, op in ops.items():
        if op["outcome"] == "ok" and key not in chain:
            if settings["promise"] == "stays":
                verdict.add("acknowledged row lost", f"{db}: {show(op)}")
            elif not settings.get("discarded"):
                verdict.add("acknowledged row vanished", f"{db}: {show(op)}, and no node kept anything of this database")
        if op["outcome"] == "fail" and key in chain:
            verdict.add("failed row is there", f"{db}: {show(op)}")
    check_branches(verdict, db, tree)
    check_order(verdict, db, ops, chain)
    check_reads(verdict, db, settings, ops, chain, [r for r in records if r["r"] == "read" and r["db"] == db])


def check_rows(verdict, db, ops, rows):
    """Every row is what some client wrote, once, upon the row before it. Gives the place of each on the chain."""
    chain = {}
    before = ("", 0)
    for place, (n, client, seq, op, detail) in enumerate(rows, 1):
        key = (client, seq)
        if n != place:
            verdict.add("rows are not numbered 1, 2, 3...", f"{db}: row {place} has n={n}")
        if key in chain:
            verdict.add("duplicate row", f"{db}: {client}/{seq}")
        chain.setdefault(key, place)
        tried = ops.get(key)
        if tried is None or tried["op"] != op or json.dumps(tried["detail"]) != detail:
            verdict.add("unexplained row", f"{db}: {client}/{seq} {op} {detail}")
        elif tried["n"] != n or tuple(tried["prev"]) != before:
            verdict.add("row follows another one than its transaction saw",
                        f"{db}: {show(tried)} saw {tried['prev']}, follows {list(before)} as n={n}")
        before = key
    return chain


def check_sums(verdict, db, rows, final):
    balances = [START_BALANCE] * ACCOUNTS
    for _, _, _, op, detail in rows:
        if op == "transfer":
            source, target, amount = json.loads(detail)
            balances[source] -= amount
            balances[target] += amount
    if balances != final["balances"]:
        verdict.add("sum broken", f"{db}: balances at the end are {final['balances']}, its transfers give {balances}")
    last = rows[-1][:3] if rows else (0, "", 0)
    if tuple(final["tip"]) != tuple(last):
        verdict.add("counter broken", f"{db}: the tip is {final['tip']}, the last row {last}")


class Tree:
    """Which transaction was built upon which."""

    def __init__(self, ops, chain):
        self.ops, self.chain, self.roots = ops, chain, {}

    def branch(self, key):
        """The first transaction off the chain that leads to this one; none for the chain itself."""
        path = []
        while key in self.ops and key not in self.chain and key not in self.roots:
            path.append(key)
            key = tuple(self.ops[key]["prev"])
            if key in path:
                break
        root = self.roots.get(key) or (path[-1] if path else None)
        for passed in path:
            self.roots[passed] = root
        return root


def check_branches(verdict, db, tree):
    """A branch that did not become history is never acknowledged beside another one that grows from the same place."""
    branches = collections.defaultdict(list)
    for key, op in tree.ops.items():
        if op["outcome"] == "ok" and key not in tree.chain:
            branches[tree.branch(key)].append(op)
    living = sorted((place, tree.ops[key]) for key, place in tree.chain.items()
                    if key in tree.ops and tree.ops[key]["outcome"] == "ok")
    groups = []
    for root, dead in branches.items():
        start = tree.chain.get(tuple(tree.ops[root]["prev"]), 0)
        groups.append((start, dead))
        first = min((op for place, op in living if place > start), key=lambda op: op["t"], default=None)
        overlap(verdict, db, dead, first)
    for index, (start, dead) in enumerate(groups):
        for other_start, other in groups[:index]:
            if start == other_start:
                first, last = min(dead, key=lambda op: op["t"]), min(other, key=lambda op: op["t"])
                if max(op["begin"] for op in dead) > last["t"] and max(op["begin"] for op in other) > first["t"]:
                    overlap(verdict, db, dead, last)


def overlap(verdict, db, dead, first):
    """Says it where something of `dead` was begun and acknowledged after `first` was acknowledged."""
    late = [op for op in dead if first and op["begin"] > first["t"]]
    if late:
        worst = max(late, key=lambda op: op["begin"])
        verdict.add("two histories acknowledged at the same time",
                    f"{db}: {len(late)} commits, last {show(worst)}, though {show(first)} was already acknowledged: "
                    f"{worst['begin'] - first['t']:.3f} s too long")


def check_order(verdict, db, ops, chain):
    """What begins after something was acknowledged comes after it."""
    on_chain = sorted((op for key, op in ops.items() if key in chain), key=lambda op: op["begin"])
    done = sorted((op for op in on_chain if op["outcome"] == "ok"), key=lambda op: op["t"])
    highest, index = None, 0
    for op in on_chain:
        while index < len(done) and done[index]["t"] < op["begin"]:
            if highest is None or done[index]["n"] > highest["n"]:
                highest = done[index]
            index += 1
        if highest and highest["n"] > op["n"]:
            verdict.add("order of commits", f"{db}: {show(op)} began after {show(highest)} had ended")


def check_reads(verdict, db, settings, ops, chain, reads):
    """Each read is a state of the chain, whole, and no node shows less than it showed before."""
    shown = {}
    for read in reads:
        shown.setdefault(read["node"], []).append(read)
    for of_node in shown.values():
        ended, index, highest = sorted(of_node, key=lambda read: read["t"]), 0, None
        for read in sorted(of_node, key=lambda read: read["begin"]):
            counts = check_read(verdict, db, settings, ops, chain, read)
            # Reads that had ended when this one began: its own connection's and others', before a restart too.
            while ended[index]["t"] < read["begin"]:
                before = ended[index]
                index += 1
                was_cut = settings["promise"] == "traceable" and chain.get(tuple(before["tip"])) != before["n"]
                if not was_cut and (highest is None or before["n"] > highest["n"]):
                    highest = before
            if highest and read["n"] < highest["n"]:
                verdict.add("backward read", f"{place(db, read)} sees n={read['n']}{'' if counts else ' (not history)'}, "
                                             f"after n={highest['n']} by {highest['client']} at {highest['t']:.3f}")


def place(db, read):
    return f"{db}: {read['client']} on {read['node']} at {read['begin']:.3f}"


def check_read(verdict, db, settings, ops, chain, read):
    """One read for itself; whether what it shows is history."""
    who = place(db, read)
    tip, n = tuple(read["tip"]), read["n"]
    if read["sum"] != ACCOUNTS * START_BALANCE:
        verdict.add("sum broken", f"{who} reads {read['sum']}")
    if read["count"] != n:
        verdict.add("torn read", f"{who} reads n={n} and {read['count']} rows")
    counts = chain.get(tip) == n or n == 0
    if not counts:
        tried = ops.get(tip)
        if tried is None or tried["n"] != n:
            verdict.add("read of what nobody wrote", f"{who} sees n={n} {tip}")
        elif settings["promise"] == "stays":
            verdict.add("read of what did not stay", f"{who} sees {show(tried)}")
        elif tried["node"] != read["node"]:
            verdict.add("read of what did not stay", f"{who} sees {show(tried)}, which only the writer's node may show")
    return counts


def check_register(verdict, db, operations, records, finals):
    """A database that is replaced as a whole, by one client: its value is the last one that was set."""
    sets = sorted(operations.of("set", db), key=lambda op: op["begin"])
    values = {0: None, **{op["gen"]: op for op in sets}}
    acknowledged = [op for op in sets if op["outcome"] == "ok"]
    number = {op["gen"]: abs(op["gen"]) for op in sets}
    number[0] = 0
    last = {}
    seen = [r for r in records if r["r"] == "seen" and r["db"] == db]
    for read in sorted(seen, key=lambda read: read["begin"]):
        who = f"{db}: {read['client']} on {read['node']} ({read['via']}) at {read['begin']:.3f}"
        gen = read["gen"]
        if not read["whole"]:
            verdict.add("torn register", f"{who} reads generation {gen}, which is not whole")
            continue
        if gen not in values or (values[gen] and values[gen]["begin"] > read["t"]):
            verdict.add("read of what nobody wrote", f"{who} reads generation {gen}")
            continue
        if values[gen] and values[gen]["outcome"] == "fail":
            verdict.add("failed row is there", f"{who} reads generation {gen}")
        # An import of unknown outcome may be done later than what its client did afterwards.
        settled = values[gen] is None or values[gen]["outcome"] == "ok"
        before = last.get((read["client"], read["via"]))
        if before is not None and settled and number[gen] < number[before]:
            verdict.add("backward read", f"{who} reads generation {gen} after {before}")
        if settled or before is None or number[gen] > number[before]:
            last[(read["client"], read["via"])] = gen
    least = max((number[op["gen"]] for op in acknowledged), default=0)
    for final in finals:
        gen = final["gen"]
        if gen != finals[0]["gen"]:
            verdict.add("nodes differ at the end", f"{db}: {finals[0]['node']} has {finals[0]['gen']}, {final['node']} {gen}")
        if gen == 0:
            # It is not there: after a drop, or because nothing was ever set for certain.
            drops = [op for op in sets if op["gen"] < 0 and number[op["gen"]] >= least]
            if least and not drops:
                verdict.add("acknowledged row lost", f"{db}: not there on {final['node']}, though {least} was acknowledged")
        elif gen not in values:
            verdict.add("unexplained row", f"{db}: {final['node']} has generation {gen}")
        elif number[gen] < least and values[gen]["outcome"] != "unknown":
            verdict.add("acknowledged row lost", f"{db}: {final['node']} has generation {gen}, though {least} was acknowledged")


def check_pair(verdict, dbs, operations, finals):
    """Transactions over two databases are in both or in none."""
    ops = {(op["client"], op["seq"]): op for op in operations.by_id.values()
           if op["r"] == "pair" and op["dbs"] == list(dbs)}
    for node in sorted({final["node"] for final in finals[dbs[0]]}):
        rows = [[tuple(row) for final in finals[db] if final["node"] == node for row in final["rows"]] for db in dbs]
        for db, found in zip(dbs, rows):
            for row, times in collections.Counter(found).items():
                if times > 1:
                    verdict.add("duplicate row", f"{db} on {node}: {row}")
                if row not in ops:
                    verdict.add("unexplained row", f"{db} on {node}: {row}")
        for key, op in ops.items():
            there = [key in found for found in rows]
            if there[0] != there[1]:
                verdict.add("half of a transaction over two databases", f"{dbs} on {node}: {show(op)} in {there}")
            if op["outcome"] == "ok" and not all(there):
                verdict.add("acknowledged row lost", f"{dbs} on {node}: {show(op)}")
            if op["outcome"] == "fail" and any(there):
                verdict.add("failed row is there", f"{dbs} on {node}: {show(op)}")


def check_positions(verdict, records):
    """A position is one content, wherever it is."""
    known = {}
    for record in records:
        if record["r"] == "position":
            first = known.setdefault((record["db"], record["pos"]), record)
            if first["sha"] != record["sha"]:
                verdict.add("one position with two contents",
                            f"{record['db']} {record['pos']}: {first['node']} at {first['t']:.3f} and {record['node']} at {record['t']:.3f}")


def check_claims(verdict, records):
    terms = collections.defaultdict(set)
    for record in records:
        if record["r"] == "claim":
            terms[record["term"]].add(record["node"])
    for term, nodes in terms.items():
        if len(nodes) > 1:
            verdict.add("two primaries in one term", f"term {term}: {sorted(nodes)}")


def check_progress(verdict, plan, operations, records):
    """After the last fault each ledger is written again in time."""
    healed = [record["healed"] for record in records if record["r"] == "fault"]
    if not healed or not plan.get("expects_progress", True):
        return
    for db, settings in plan["databases"].items():
        if settings["kind"] != "ledger":
            continue
        acknowledged = [op["t"] - max(healed) for op in operations.of("try", db)
                        if op["outcome"] == "ok" and op["begin"] >= max(healed)]
        if min(acknowledged, default=float("inf")) > WRITES_AGAIN_SECONDS:
            verdict.add("no write after the last fault", f"{db}: none within {WRITES_AGAIN_SECONDS} s")


def check_nodes(verdict, records):
    """Every node that was started can be used in time, and no thread hangs in the kernel."""
    for record in records:
        if record["r"] == "start" and (record["t"] is None or record["t"] - record["begin"] > COMES_BACK_SECONDS):
            took = "never" if record["t"] is None else f"{record['t'] - record['begin']:.1f} s later"
            verdict.add("node not back in time", f"{record['node']}: started at {record['begin']:.3f}, mounted {took}")
        elif record["r"] == "stuck" and record["seconds"] >= STUCK_SECONDS:
            verdict.add("thread in state D", f"{record['process']}, thread {record['thread']}: {record['seconds']:.1f} s in "
                                             f"{record['where']}")


def check(plan, records):
    """Everything that is wrong with a history."""
    verdict = Verdict()
    operations = Operations(records)
    finals = collections.defaultdict(list)
    for record in records:
        if record["r"] == "final":
            finals[record["db"]].append(record)
        elif record["r"] == "broken":
            verdict.add(record["what"].partition(":")[0], record["what"].partition(":")[2].strip())
        elif record["r"] == "error" and DAMAGE.search(record["error"]):
            verdict.add("damaged database", f"{record['db']} on {record['node']} ({record['where']}, {record['client']}, "
                                            f"at {record['t']:.3f}): {record['error']}")
    pairs = []
    for db, settings in plan["databases"].items():
        if not finals[db]:
            # A round that was broken off has none.
            if not verdict.broken:
                verdict.add("no state at the end", db)
        elif settings["kind"] == "ledger":
            check_ledger(verdict, db, settings, operations, records, finals[db])
        elif settings["kind"] == "register":
            check_register(verdict, db, operations, records, finals[db])
        else:
            pairs.append(db)
    for index in range(0, len(pairs), 2):
        check_pair(verdict, pairs[index:index + 2], operations, finals)
    check_positions(verdict, records)
    check_claims(verdict, records)
    check_nodes(verdict, records)
    check_progress(verdict, plan, operations, records)
    return verdict


def main():
    plan, records = load(sys.argv[1])
    verdict = check(plan, records)
    for line in verdict.lines():
        print(line)
    sys.exit(1 if verdict.broken else 0)


if __name__ == "__main__":
    main()
