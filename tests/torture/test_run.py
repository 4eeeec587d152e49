#!/usr/bin/env python3
"""What a run looks at and counts beside the history: threads that hang, and how long nobody could write."""
import os
import sqlite3
import tempfile
import types
import unittest

from figures import Figures, percentiles
from history import REQUEST_SECONDS, STUCK_SECONDS
from states import read_state
from stuck import Stuck

NODE, CLIENT = 10, 20


class Threads(unittest.TestCase):
    """Looks at a directory that is laid out as /proc."""

    def setUp(self):
        self.dir = tempfile.TemporaryDirectory()
        self.records = []
        record = types.SimpleNamespace(write=lambda kind, **fields: self.records.append((kind, fields)))
        self.stuck = Stuck(types.SimpleNamespace(history=self.dir.name, record=record), proc=self.dir.name)
        for pid in [NODE, CLIENT]:
            self.thread(pid)

    def tearDown(self):
        self.dir.cleanup()

    def thread(self, pid, state="S", switches=3, tracer=0):
        text = (f"Name:\tx\nState:\t{state} (x)\nTracerPid:\t{tracer}\nvoluntary_ctxt_switches:\t{switches}\n"
                "nonvoluntary_ctxt_switches:\t1\n")
        os.makedirs(f"{self.dir.name}/{pid}/task/{pid}", exist_ok=True)
        for path in [f"{pid}/status", f"{pid}/task/{pid}/status"]:
            with open(f"{self.dir.name}/{path}", "w") as out:
                out.write(text)

    def look(self, *times):
        for time in times:
            self.stuck.look([NODE], [CLIENT], time)
        return [int(fields["thread"]) for kind, fields in self.records if kind == "stuck"]

    def test_a_thread_of_a_node_in_one_wait_is_reported_once(self):
        self.thread(NODE, "D")
        self.assertEqual(self.look(0, STUCK_SECONDS), [])
        self.assertEqual(self.look(STUCK_SECONDS + 0.5, STUCK_SECONDS + 1, 20), [NODE])

    def test_a_thread_that_was_run_in_between_waits_anew(self):
        for time in range(20):
            self.thread(NODE, "D", switches=time)
            self.assertEqual(self.look(time), [])

    def test_a_request_of_an_application_may_wait_for_the_quorum(self):
        self.thread(CLIENT, "D")
        self.assertEqual(self.look(0, STUCK_SECONDS + REQUEST_SECONDS), [])
        self.assertEqual(self.look(STUCK_SECONDS + REQUEST_SECONDS + 0.5), [CLIENT])

    def test_what_waits_for_a_node_that_is_stopped_or_traced_is_counted_from_when_it_goes_on(self):
        for held in [{"state": "T"}, {"state": "t"}, {"tracer": 77}]:
            self.thread(NODE)
            self.thread(CLIENT, "D")
            self.look(0)
            self.thread(NODE, **held)
            self.assertEqual(self.look(5, 15), [], held)
            self.thread(NODE)
            self.assertEqual(self.look(16, 26), [], held)
            self.thread(CLIENT)
            self.look(27)


class States(unittest.TestCase):
    def test_a_register_whose_first_transaction_never_ended_is_not_there_and_a_torn_one_is(self):
        connection = sqlite3.connect(":memory:", isolation_level=None)
        self.assertEqual(read_state(connection, "register"), {"gen": 0})
        connection.execute("CREATE TABLE g(gen, pad)")
        connection.execute("INSERT INTO g VALUES(1, '')")
        self.assertEqual(read_state(connection, "register"), {"gen": "torn 1"})


class Counts(unittest.TestCase):
    def count(self, commits):
        figures = Figures()
        figures.count_fault("3", "kill", 10, 20, commits)
        return dict(figures.here), dict(figures.elsewhere)

    def test_the_longest_time_without_a_commit_counts_for_the_node_that_wrote_next(self):
        commits = [(9.5, "n1"), (10.5, "n1"), (13, "n2"), (14, "n2"), (19, "n2"), (21, "n1")]
        self.assertEqual(self.count(commits), ({("3", "kill"): [5]}, {}))
        self.assertEqual(self.count(commits[:4]), ({}, {("3", "kill"): [2.5]}))

    def test_time_before_the_fault_does_not_count(self):
        self.assertEqual(self.count([(1, "n1"), (10.25, "n1")]), ({("3", "kill"): [0.25]}, {}))

    def test_a_round_counts_once_for_each_kind_of_its_faults(self):
        figures = Figures()
        figures.count_round("3", ["kill", "kill", "cut"], True)
        figures.count_round("3", ["kill"], False)
        self.assertEqual((figures.rounds[("3", "kill")], figures.passed[("3", "kill")]), (2, 1))
        self.assertEqual((figures.all_rounds(), figures.all_passed()), (2, 1))
        self.assertEqual(percentiles([3, 1, 2]).split(), ["3", "2.00", "3.00", "3.00"])


if __name__ == "__main__":
    unittest.main()
