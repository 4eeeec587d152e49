"""Threads that hang in the kernel: a look at them while a round runs, and where all of them are when it is broken."""
import os
import re
import threading

import history
from history import REQUEST_SECONDS, STUCK_SECONDS


class Stuck(threading.Thread):
    """Looks for threads in state D (waiting in the kernel, and no signal ends it).

    A program that was stopped, or that a debugger holds, lets others wait for it: nothing counts while one of the nodes is
    held, and what waits is counted anew when it goes on. A request of an application may wait for the quorum.
    """

    def __init__(self, run, proc="/proc"):
        super().__init__(daemon=True)
        self.run_, self.proc, self.over = run, proc, threading.Event()
        self.since, self.reported = {}, set()

    def end(self):
        self.over.set()
        if self.is_alive():
            self.join(5)

    def run(self):
        while not self.over.wait(0.5):
            nodes = [node.process.pid for node in list(self.run_.cluster.nodes) if node.process]
            clients = [client["process"].pid for client in list(self.run_.clients) if client["process"].returncode is None]
            self.look(nodes, clients, history.now())

    def look(self, nodes, clients, now):
        """One look; a record for each thread that has waited too long."""
        if any(self.is_held(pid) for pid in nodes):
            self.since = {}
            return
        since = {}
        for pid in nodes + clients:
            for tid in listdir(f"{self.proc}/{pid}/task"):
                status = read(f"{self.proc}/{pid}/task/{tid}/status")
                if re.search(r"^State:\s+D", status, re.M):
                    # The same wait as before, if the thread was not run in between.
                    wait = (pid, tid, *re.findall(r"switches:\s+(\d+)", status))
                    since[wait] = self.since.get(wait, now)
        self.since = since
        for wait, begin in since.items():
            limit = STUCK_SECONDS if wait[0] in nodes else STUCK_SECONDS + REQUEST_SECONDS
            if now - begin > limit and wait not in self.reported:
                self.reported.add(wait)
                self.report(*wait[:2], now - begin, nodes + clients)

    def is_held(self, pid):
        status = read(f"{self.proc}/{pid}/status")
        return bool(re.search(r"^State:\s+[Tt]|^TracerPid:\s+[1-9]", status, re.M))

    def report(self, pid, tid, seconds, pids):
        name = read(f"{self.proc}/{pid}/cmdline").replace("\0", " ")[:120]
        where = os.path.join(self.run_.history, f"stuck-{pid}-{tid}.txt")
        write_stacks(where, pids)
        self.run_.record.write("stuck", process=f"{pid} {name}", thread=tid, seconds=seconds,
                               where=f"{read(f'{self.proc}/{pid}/task/{tid}/wchan')}, all stacks in {where}")


def listdir(path):
    try:
        return os.listdir(path)
    except OSError:
        return []


def read(path):
    try:
        with open(path) as source:
            return source.read()
    except OSError:
        return ""


def waits_in(pid):
    """Where in the kernel the threads of a process wait."""
    return ", ".join(f"{read(f'/proc/{pid}/task/{tid}/comm').strip()} in {read(f'/proc/{pid}/task/{tid}/wchan')}"
                     for tid in listdir(f"/proc/{pid}/task"))


def write_stacks(path, pids):
    """Where in the kernel every thread of these processes is."""
    with open(path, "w") as out:
        for pid in pids:
            out.write(f"{pid}: {read(f'/proc/{pid}/cmdline')[:300]}\n".replace("\0", " "))
            for tid in listdir(f"/proc/{pid}/task"):
                task = f"/proc/{pid}/task/{tid}"
                stack = [line.split()[-1].partition("+")[0] for line in read(task + "/stack").splitlines()[:8]]
                state = read(task + "/stat").rpartition(")")[2][1:2]
                out.write(f"    {tid} {read(task + '/comm').strip()} {state}: {' < '.join(stack)} {read(task + '/syscall').strip()[:80]}\n")
