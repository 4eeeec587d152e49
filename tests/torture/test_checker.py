#!/usr/bin/env python3
"""The checker accepts true histories and rejects every kind of false one."""
import copy
import json
import unittest

from checker import check
from history import ACCOUNTS, START_BALANCE

TOTAL = ACCOUNTS * START_BALANCE


class Story:
    """A history told step by step: one ledger, time in seconds."""

    def __init__(self, promise="stays"):
        self.plan = {"databases": {"a.db": {"kind": "ledger", "promise": promise}}}
        self.records, self.rows, self.seq, self.time = [], [], 0, 0.0
        self.balances = [START_BALANCE] * ACCOUNTS

    def write(self, node="n1", op="insert", detail=None, outcome="ok", lands=True, upon=None, at=None):
        """A transaction upon the last row, or upon another; it becomes a row of the chain where it lands."""
        self.seq += 1
        begin = self.time if at is None else at
        self.time = max(self.time, begin + 1)
        before = upon if upon is not None else (self.rows[-1][:3] if self.rows else [0, "", 0])
        row = [before[0] + 1, f"c-{node}", self.seq, op, json.dumps(detail)]
        self.records.append({"r": "try", "client": row[1], "seq": self.seq, "node": node, "db": "a.db", "op": op,
                             "detail": detail, "n": row[0], "prev": before[1:3], "begin": begin})
        self.records.append({"r": "end", "client": row[1], "seq": self.seq, "outcome": outcome, "error": None,
                             "t": begin + 0.5})
        if lands:
            self.rows.append(row)
            if op == "transfer":
                self.balances[detail[0]] -= detail[2]
                self.balances[detail[1]] += detail[2]
        return row

    def read(self, row=None, node="n2", **changes):
        row = row or self.rows[-1]
        self.records.append({"r": "read", "client": f"r-{node}", "conn": 1, "node": node, "db": "a.db",
                             "begin": self.time, "t": self.time + 0.1, "n": row[0], "tip": row[1:3], "count": row[0],
                             "sum": TOTAL, **changes})
        self.time += 1

    def end(self, nodes=("n1", "n2")):
        """Adds what the nodes have at the end, unless that was told; gives the broken rules."""
        if not any(record["r"] == "final" for record in self.records):
            tip = self.rows[-1][:3] if self.rows else [0, "", 0]
            for node in nodes:
                self.records.append({"r": "final", "db": "a.db", "node": node, "rows": copy.deepcopy(self.rows),
                                     "balances": list(self.balances), "tip": tip})
        return check(self.plan, self.records).broken


def register(*steps):
    """A register's history: ("set", gen, outcome) or ("seen", gen, whole) or ("final", node, gen)."""
    plan = {"databases": {"i.db": {"kind": "register", "promise": "stays"}}}
    records = []
    for time, (kind, *rest) in enumerate(steps):
        common = {"r": kind, "db": "i.db", "node": "n1", "client": "w"}
        if kind == "set":
            records.append({**common, "seq": time, "gen": rest[0], "begin": time})
            records.append({"r": "end", "client": "w", "seq": time, "outcome": rest[1], "t": time + 0.5})
        elif kind == "seen":
            records.append({**common, "client": "r", "begin": time, "t": time + 0.1, "gen": rest[0], "whole": rest[1],
                            "via": "mount"})
        else:
            records.append({**common, "node": rest[0], "gen": rest[1]})
    return check(plan, records).broken


def with_record(**record):
    """A plain history with one more record."""
    story = Story()
    story.write()
    story.records.append(record)
    return story.end()


def pair(outcome, in_one, in_two):
    plan = {"databases": {"p.db": {"kind": "pair"}, "q.db": {"kind": "pair"}}}
    records = [{"r": "pair", "client": "c", "seq": 1, "node": "n1", "dbs": ["p.db", "q.db"], "begin": 1},
               {"r": "end", "client": "c", "seq": 1, "outcome": outcome, "t": 2},
               {"r": "final", "node": "n1", "db": "p.db", "rows": [["c", 1]] * in_one},
               {"r": "final", "node": "n1", "db": "q.db", "rows": [["c", 1]] * in_two}]
    return check(plan, records).broken


class TrueHistories(unittest.TestCase):
    def test_a_plain_history_is_accepted(self):
        story = Story()
        story.write()
        story.read()
        story.write(op="transfer", detail=[0, 1, 50])
        story.write(node="n2")
        story.write(outcome="fail", lands=False)
        story.write(outcome="unknown", lands=False)
        story.write(outcome="unknown")
        story.read()
        self.assertEqual(story.end(), {})

    def test_under_normal_the_last_commits_of_a_lost_primary_may_be_cut_where_it_kept_them(self):
        story = Story("traceable")
        base = story.write()
        lost = story.write(lands=False)
        story.read(lost, node="n1")
        story.write(node="n2", upon=base)
        story.read(node="n1")
        story.plan["databases"]["a.db"]["discarded"] = True
        self.assertEqual(story.end(), {})

    def test_registers_and_pairs_in_order_are_accepted(self):
        self.assertEqual(register(("set", 1, "ok"), ("seen", 1, True), ("set", 2, "unknown"), ("seen", 1, True),
                                  ("seen", 2, True), ("final", "n1", 2), ("final", "n2", 2)), {})
        self.assertEqual(register(("set", 1, "ok"), ("set", -2, "ok"), ("final", "n1", 0)), {})
        self.assertEqual(pair("ok", 1, 1), {})
        self.assertEqual(pair("unknown", 0, 0), {})
        self.assertEqual(pair("unknown", 1, 1), {})


class FalseHistories(unittest.TestCase):
    def rejected(self, broken, rule):
        self.assertIn(rule, broken)

    def test_a_lost_acknowledged_row_under_full(self):
        story = Story()
        story.write()
        story.write(lands=False)
        self.rejected(story.end(), "acknowledged row lost")

    def test_a_lost_acknowledged_row_under_normal_that_nobody_kept(self):
        story = Story("traceable")
        story.write()
        story.write(lands=False)
        self.rejected(story.end(), "acknowledged row vanished")

    def test_a_duplicate_row(self):
        story = Story()
        story.rows.append(story.write())
        self.rejected(story.end(), "duplicate row")

    def test_an_unexplained_extra_row(self):
        story = Story()
        story.write()
        story.rows.append([2, "nobody", 1, "insert", "null"])
        self.rejected(story.end(), "unexplained row")

    def test_a_row_whose_content_its_client_did_not_write(self):
        story = Story()
        story.write(op="transfer", detail=[0, 1, 5])
        story.rows[0][4] = "[0, 1, 6]"
        self.rejected(story.end(), "unexplained row")

    def test_a_row_of_a_transaction_that_failed(self):
        story = Story()
        story.write(outcome="fail")
        self.rejected(story.end(), "failed row is there")

    def test_a_backward_read(self):
        story = Story()
        first = story.write()
        story.write()
        story.read()
        story.read(first)
        self.rejected(story.end(), "backward read")

    def test_a_backward_read_under_normal_of_what_was_never_cut(self):
        story = Story("traceable")
        first = story.write()
        story.write()
        story.read()
        story.read(first)
        self.rejected(story.end(), "backward read")

    def test_a_node_that_shows_less_to_a_new_connection(self):
        story = Story("traceable")
        first = story.write()
        story.write()
        story.read(client="before-the-restart")
        story.read(first, client="after-the-restart")
        self.rejected(story.end(), "backward read")

    def test_a_broken_sum_in_a_read_and_at_the_end(self):
        story = Story()
        story.write(op="transfer", detail=[0, 1, 5])
        story.read(sum=TOTAL - 5)
        self.rejected(story.end(), "sum broken")
        story = Story()
        story.write(op="transfer", detail=[0, 1, 5])
        story.balances[0] += 5
        self.rejected(story.end(), "sum broken")

    def test_a_torn_read(self):
        story = Story()
        story.write()
        story.read(count=0)
        self.rejected(story.end(), "torn read")

    def test_two_nodes_that_acknowledge_in_overlapping_intervals(self):
        for promise in ["stays", "traceable"]:
            story = Story(promise)
            story.plan["databases"]["a.db"]["discarded"] = True
            base = story.write()
            old = story.write(lands=False)
            story.write(node="n2", upon=base)
            story.write(lands=False, upon=old)
            self.rejected(story.end(), "two histories acknowledged at the same time")

    def test_two_lost_branches_in_overlapping_intervals(self):
        story = Story("traceable")
        story.plan["databases"]["a.db"]["discarded"] = True
        base = story.write()
        one = story.write(lands=False)
        two = story.write(node="n2", lands=False, upon=base)
        story.write(lands=False, upon=one)
        story.write(node="n2", lands=False, upon=two)
        self.rejected(story.end(), "two histories acknowledged at the same time")

    def test_a_read_of_what_does_not_stay(self):
        story = Story()
        story.write()
        story.read(story.write(outcome="unknown", lands=False))
        self.rejected(story.end(), "read of what did not stay")

    def test_a_follower_that_shows_what_was_cut(self):
        story = Story("traceable")
        story.plan["databases"]["a.db"]["discarded"] = True
        story.write()
        story.read(story.write(node="n1", lands=False), node="n2")
        self.rejected(story.end(), "read of what did not stay")

    def test_a_read_of_what_nobody_wrote(self):
        story = Story()
        story.write()
        story.read([2, "nobody", 3])
        self.rejected(story.end(), "read of what nobody wrote")

    def test_a_transaction_upon_a_state_that_is_not_history(self):
        story = Story()
        story.write()
        story.write(upon=[1, "somebody", 9])
        self.rejected(story.end(), "row follows another one than its transaction saw")

    def test_a_commit_ordered_before_what_was_acknowledged_before_it(self):
        story = Story()
        story.write(at=10)
        story.write(at=5)
        self.rejected(story.end(), "order of commits")

    def test_nodes_that_differ_at_the_end(self):
        story = Story()
        story.write()
        story.end()
        story.records[-1]["rows"] = []
        self.rejected(story.end(), "nodes differ at the end")

    def test_a_position_with_two_contents(self):
        story = Story()
        story.write()
        for node in ["n1", "n2"]:
            story.records.append({"r": "position", "node": node, "db": "a.db", "pos": "1/8", "sha": node, "t": 1})
        self.rejected(story.end(), "one position with two contents")

    def test_two_primaries_in_one_term(self):
        story = Story()
        story.write()
        story.records += [{"r": "claim", "node": node, "term": 3, "t": 1} for node in ["n1", "n2"]]
        self.rejected(story.end(), "two primaries in one term")

    def test_a_damaged_database(self):
        for text in ["SQLITE_CORRUPT: database disk image is malformed", "SQLITE_CORRUPT_INDEX: x",
                     "SQLITE_NOTADB: file is not a database", "500 app.db: file is not a database"]:
            story = Story()
            story.write()
            story.records.append({"r": "error", "client": "r", "node": "n1", "db": "a.db", "where": "read", "t": 1,
                                  "error": text})
            self.rejected(story.end(), "damaged database")

    def test_a_node_that_is_not_back_in_time(self):
        for mounted in [None, 31.5]:
            self.rejected(with_record(r="start", node="n1", begin=1, t=mounted), "node not back in time")
        self.assertEqual(with_record(r="start", node="n1", begin=1, t=30.5), {})

    def test_a_thread_that_the_kernel_does_not_let_go(self):
        told = {"r": "stuck", "process": "7 skein mount", "thread": 8, "where": "fuse_lookup"}
        self.rejected(with_record(**told, seconds=5.2), "thread in state D")
        self.assertEqual(with_record(**told, seconds=4.9), {})

    def test_no_write_after_the_last_fault(self):
        story = Story()
        story.write()
        story.records.append({"r": "fault", "kind": "kill", "begin": 2, "healed": 3})
        self.rejected(story.end(), "no write after the last fault")

    def test_what_the_run_itself_saw(self):
        story = Story()
        story.write()
        story.records.append({"r": "broken", "what": "panic: n1: panicked at x", "t": 1})
        self.rejected(story.end(), "panic")

    def test_registers(self):
        self.rejected(register(("set", 1, "ok"), ("set", 2, "ok"), ("final", "n1", 1)), "acknowledged row lost")
        self.rejected(register(("set", 1, "ok"), ("final", "n1", 0)), "acknowledged row lost")
        self.rejected(register(("set", 1, "ok"), ("final", "n1", 7)), "unexplained row")
        self.rejected(register(("set", 1, "ok"), ("seen", 1, False), ("final", "n1", 1)), "torn register")
        self.rejected(register(("set", 1, "ok"), ("set", 2, "ok"), ("seen", 2, True), ("seen", 1, True),
                               ("final", "n1", 2)), "backward read")
        self.rejected(register(("seen", 1, True), ("set", 1, "ok"), ("final", "n1", 1)), "read of what nobody wrote")
        self.rejected(register(("set", 1, "ok"), ("final", "n1", 1), ("final", "n2", 0)), "nodes differ at the end")

    def test_transactions_over_two_databases(self):
        self.rejected(pair("unknown", 1, 0), "half of a transaction over two databases")
        self.rejected(pair("ok", 0, 0), "acknowledged row lost")
        self.rejected(pair("fail", 1, 1), "failed row is there")
        self.rejected(pair("ok", 2, 1), "duplicate row")


if __name__ == "__main__":
    unittest.main()
