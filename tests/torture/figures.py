"""What a torture run counts, and how it is printed at the end."""
import collections
import re
import sys


class Figures:
    """What is counted over all rounds."""

    def __init__(self):
        self.outcomes = collections.Counter()
        self.errors = collections.Counter()
        self.warnings = collections.Counter()
        # By (shape, fault); the empty fault stands for all rounds of a shape.
        self.rounds = collections.Counter()
        self.passed = collections.Counter()
        self.here = collections.defaultdict(list)
        self.elsewhere = collections.defaultdict(list)
        self.recoveries = collections.defaultdict(list)

    def count_error(self, where, text):
        self.errors[(where, plain(text))] += 1

    def count_round(self, shape, kinds, passed):
        """A round of a shape, in which these faults happened."""
        for kind in {"", *kinds}:
            self.rounds[(shape, kind)] += 1
            self.passed[(shape, kind)] += passed

    def count_fault(self, shape, kind, begin, end, acknowledged):
        """A fault: `acknowledged` has (time, node) of all commits of its round, `end` is when all ledgers were written.

        How long nobody could write: the longest time between two commits. The one after it is on the node of the one
        before it (`here`), or on another one.
        """
        within = sorted(commit for commit in acknowledged if begin < commit[0] <= end)
        before = max((commit for commit in acknowledged if commit[0] <= begin), default=(begin, None))
        gaps = [(later[0] - max(earlier[0], begin), earlier[1], later[1]) for earlier, later in zip([before, *within], within)]
        if gaps:
            gap, last, first = max(gaps, key=lambda gap: gap[0])
            (self.here if last == first else self.elsewhere)[(shape, kind)].append(gap)

    def all_rounds(self):
        return sum(count for (_, kind), count in self.rounds.items() if not kind)

    def all_passed(self):
        return sum(count for (_, kind), count in self.passed.items() if not kind)

    def print(self):
        print(f"\n{self.all_rounds()} rounds, {sum(map(len, self.recoveries.values()))} faults")
        print("\noperations             ok    fail  unknown")
        for what in sorted({what for what, _ in self.outcomes}):
            counts = [self.outcomes[(what, outcome)] for outcome in ("ok", "fail", "unknown")]
            print(f"{what:18}" + "".join(f"{count:8}" for count in counts))
        print("\nerror texts told to applications")
        for (where, text), count in self.errors.most_common(60):
            print(f"{count:7}  {where}: {text}")
        print("\nlines of WARN and ERROR in the nodes' logs, numbers taken out")
        for text, count in self.warnings.most_common(40):
            print(f"{count:7}  {text}")
        self.print_faults()
        sys.stdout.flush()

    def print_faults(self):
        """A line for each shape and fault, for each fault over all shapes, and for each shape."""
        print("\nseconds: the longest time without a commit anywhere, where the next one was on the same node and where it was "
              "elsewhere; and from the fault's end until every ledger was written")
        print(f"{'':28}{'rounds':>6}{'passed':>7}" + "".join(
            f" |{title:>10}{'p50':>7}{'p99':>7}{'max':>7}" for title in ["here", "elsewhere", "all"]))
        kinds = sorted({kind for _, kind in self.rounds if kind})
        shapes = sorted({shape for shape, _ in self.rounds})
        for shape in shapes:
            for kind in kinds:
                if (shape, kind) in self.rounds:
                    self.print_line(f"{shape} {kind}", [(shape, kind)], [(shape, kind)])
        for kind in kinds if len(shapes) > 1 else []:
            self.print_line(f"all {kind}", [(shape, kind) for shape in shapes], [(shape, kind) for shape in shapes])
        for shape in shapes:
            self.print_line(shape, [(shape, "")], [(shape, kind) for kind in kinds])

    def print_line(self, title, rounds, faults):
        line = f"{title:28}{sum(self.rounds[key] for key in rounds):6}{sum(self.passed[key] for key in rounds):7}"
        for times in (self.here, self.elsewhere, self.recoveries):
            line += " |" + percentiles([time for key in faults for time in times.get(key, [])])
        print(line)


def percentiles(times):
    """How many, and their median, 99th percentile and maximum."""
    if not times:
        return f"{0:10}{'':21}"
    times = sorted(times)
    at = lambda share: times[min(len(times) - 1, int(share * len(times)))]
    return f"{len(times):10}{at(0.5):7.2f}{at(0.99):7.2f}{times[-1]:7.2f}"


def plain(text):
    """A text without what differs each time."""
    text = re.sub(r"/\S+/", "", text)
    text = re.sub(r"\b[0-9a-f]{16}(/[0-9a-f]{16})?\b", "POS", text)
    text = re.sub(r"\b([a-z-]+?)\d*(-[nr]\d)?-\d+\.db", r"\1.db", text)
    return re.sub(r"\d+", "N", re.sub(r"\b[nr]\d\b", "NODE", text))
