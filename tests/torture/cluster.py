"""The nodes of a torture run: processes in network namespaces of their own, and what can be done to them."""
import ctypes
import http.client
import json
import os
import re
import select
import shutil
import signal
import subprocess
import threading
import time

from history import COMES_BACK_SECONDS, now

LISTEN, HTTP = 20203, 20202
NOBODY = "02:00:00:00:00:01"
CLONE_NEWNET = 0x40000000
FAKETIME = "faketime/libfaketimeMT.so.1"
LIBC = ctypes.CDLL(None, use_errno=True)


class Broken(Exception):
    """Something that may not happen; ends the round."""


def ip(words, program="ip"):
    done = subprocess.run([program, *words.split()], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=20)
    if done.returncode:
        raise OSError(f"{program} {words}: {done.stdout.decode(errors='replace').strip()}")


class Network:
    """A bridge in a namespace, and a namespace for each node; the host's network is not touched."""

    def __init__(self, names):
        self.prefix = f"skt{os.getpid()}"
        self.bridge = f"{self.prefix}-bridge"
        self.names = names
        self.address = {name: f"10.78.1.{index + 1}" for index, name in enumerate(names)}
        ip(f"netns add {self.bridge}")
        ip(f"-n {self.bridge} link add bridge type bridge")
        ip(f"-n {self.bridge} link set bridge up")
        for name in names:
            ip(f"netns add {self.space(name)}")
            ip(f"-n {self.bridge} link add p-{name} type veth peer name eth0 netns {self.space(name)}")
            ip(f"-n {self.bridge} link set p-{name} master bridge up")
            ip(f"-n {self.space(name)} address add {self.address[name]}/24 dev eth0")
            ip(f"-n {self.space(name)} link set eth0 up")
            ip(f"-n {self.space(name)} link set lo up")

    def space(self, name):
        return f"{self.prefix}-{name}"

    def inside(self, name):
        """The beginning of a command that runs with a node's network and everything else of the host."""
        return ["nsenter", f"--net=/run/netns/{self.space(name)}"]

    def enter(self, name):
        """Moves the calling thread into a node's network."""
        with open(f"/run/netns/{self.space(name)}") as space:
            if LIBC.setns(space.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")

    def cut_off(self, name):
        ip(f"-n {self.bridge} link set dev p-{name} state 0", "bridge")

    def cut_one_way(self, source, target):
        ip(f"-n {self.space(source)} neighbour replace {self.address[target]} lladdr {NOBODY} nud permanent dev eth0")

    def heal(self):
        for name in self.names:
            ip(f"-n {self.bridge} link set dev p-{name} state 3", "bridge")
            ip(f"-n {self.space(name)} neighbour flush dev eth0 nud all")

    def remove(self):
        for name in [*map(self.space, self.names), self.bridge]:
            try:
                ip(f"netns delete {name}")
            except OSError:
                pass


def faketime():
    places = [f"/usr/lib/{os.uname().machine}-linux-gnu", "/usr/lib64", "/usr/lib"]
    return next((os.path.join(place, FAKETIME) for place in places if os.path.exists(os.path.join(place, FAKETIME))), None)


class Node:
    """One node: its directories, its log, and its daemon while that runs."""

    def __init__(self, cluster, name, role):
        self.cluster, self.name, self.role = cluster, name, role
        self.dir = os.path.join(cluster.dir, name)
        self.mount, self.data = os.path.join(self.dir, "mnt"), os.path.join(self.dir, "disk", "data")
        self.log, self.clock = os.path.join(self.dir, "stderr"), os.path.join(self.dir, "clock")
        self.http = f"{cluster.network.address[name]}:{HTTP}"
        self.process, self.log_read, self.status, self.paused = None, 0, None, False
        self.silence = ""
        os.makedirs(self.mount)
        os.makedirs(os.path.join(self.dir, "disk"))
        if cluster.shape.disk_mib:
            ip(f"-t tmpfs -o size={cluster.shape.disk_mib}m tmpfs {self.dir}/disk", "mount")
        # What applications write there while nothing is mounted would be in no database: it shall fail.
        immutable(self.mount, True)
        self.set_clock(0)

    def set_clock(self, seconds):
        with open(self.clock, "w") as out:
            out.write(f"{seconds:+d}\n")

    def environment(self):
        env = {key: value for key, value in os.environ.items() if not key.startswith("SKEIN_")}
        library = faketime()
        if library:
            env.update(LD_PRELOAD=library, FAKETIME_TIMESTAMP_FILE=self.clock, FAKETIME_CACHE_DURATION="1",
                       FAKETIME_DONT_FAKE_MONOTONIC="1", FAKETIME_DISABLE_SHM="1", NO_FAKE_STAT="1")
        return env

    def command(self):
        address = self.cluster.network.address[self.name]
        command = [*self.cluster.network.inside(self.name), self.cluster.skein, "mount", "--name", self.name,
                   "--role", self.role, "--mount", self.mount, "--data", self.data, "--listen", f"{address}:{LISTEN}",
                   "--http", self.http, "--insecure"]
        others = [f"{self.cluster.network.address[other.name]}:{LISTEN}" for other in self.cluster.nodes if other is not self]
        # A cluster is founded once: later starts find it in the data directory.
        if others:
            command += ["--join", ",".join(others)]
        elif not os.path.exists(self.data):
            command.append("--bootstrap")
        if not self.cluster.shape.passthrough:
            command.append("--no-passthrough")
        return command

    def begin_start(self):
        """Starts the daemon without waiting for it."""
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(self.command(), stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL,
                                            env=self.environment(), start_new_session=True)

    def end_start(self, deadline):
        """Waits until applications may start."""
        said = b""
        while time.monotonic() < deadline:
            ready, _, _ = select.select([self.process.stdout], [], [], 0.2)
            if ready:
                part = os.read(self.process.stdout.fileno(), 4096)
                said += part
                if b"mounted " in said and said.endswith(b"\n"):
                    return
                if not part:
                    code = self.process.wait()
                    self.forget_process()
                    raise Broken(f"node does not come back: {self.name} ended with {code}: "
                                 f"{self.last_lines(1)}{named_processes(self.last_lines(1))}")
        raise Broken(f"node does not come back: {self.name} not mounted within {COMES_BACK_SECONDS} s: {self.last_lines(3)}")

    def last_lines(self, count):
        with open(self.log, errors="replace") as source:
            return " | ".join(line.strip() for line in source.readlines()[-count:])

    def runs(self):
        return self.process is not None and self.process.poll() is None

    def signal(self, number):
        self.process.send_signal(number)
        self.paused = number == signal.SIGSTOP

    def kill(self):
        if self.process:
            self.process.kill()
            self.process.wait()
            self.forget_process()

    def terminate(self):
        """Ends the daemon in order."""
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(COMES_BACK_SECONDS)
        except subprocess.TimeoutExpired:
            raise Broken(f"node does not end: {self.name}, {COMES_BACK_SECONDS} s after SIGTERM: {self.last_lines(3)}")
        self.forget_process()
        if code:
            raise Broken(f"node ends with an error: {self.name}, {code} after SIGTERM: {self.last_lines(3)}")

    def forget_process(self):
        """The daemon has ended; libfaketime removes what it keeps in shared memory only where a process ends in order."""
        for name in [f"faketime_shm_{self.process.pid}", f"sem.faketime_sem_{self.process.pid}"]:
            try:
                os.unlink(os.path.join("/dev/shm", name))
            except OSError:
                pass
        self.process.stdout.close()
        self.process = None

    def wipe(self):
        shutil.rmtree(self.data)

    def new_log_lines(self):
        """What the daemon logged since the last call."""
        with open(self.log, "rb") as source:
            source.seek(self.log_read)
            data = source.read()
        end = data.rfind(b"\n") + 1
        self.log_read += end
        return re.sub(r"\x1b\[[0-9;]*m", "", data[:end].decode(errors="replace")).splitlines()

    def discarded(self):
        try:
            return os.listdir(os.path.join(self.data, "discarded"))
        except OSError:
            return []

    def get(self, path, timeout=5):
        """A request from inside the node's own network; only on a thread that has entered it."""
        connection = http.client.HTTPConnection(self.http, timeout=timeout)
        try:
            connection.request("GET", path)
            reply = connection.getresponse()
            return reply.status, reply.headers, reply.read()
        finally:
            connection.close()


class Cluster:
    """All nodes, and a thread for each that asks it for its status all the time."""

    def __init__(self, directory, skein, shape, claims):
        self.dir, self.skein, self.shape, self.claims = directory, skein, shape, claims
        names = [f"n{index + 1}" for index in range(shape.voters)] + [f"r{index + 1}" for index in range(shape.replicas)]
        self.network = Network(names)
        self.nodes, self.starts, self.over = [], [], threading.Event()
        for name in names:
            node = Node(self, name, "voter" if name[0] == "n" else "replica")
            self.nodes.append(node)
        founder, *others = self.nodes
        self.nodes = [founder]
        self.start([founder])
        self.nodes += others
        for node in others:
            self.start([node])
        for node in self.nodes:
            threading.Thread(target=self.watch, args=(node,), daemon=True).start()
        self.wait_voting()

    def voters(self):
        return [node for node in self.nodes if node.role == "voter"]

    def start(self, nodes):
        """Starts nodes side by side: two voters may need one another."""
        deadline = time.monotonic() + COMES_BACK_SECONDS
        begin = now()
        for node in nodes:
            node.begin_start()
        for node in nodes:
            start = {"node": node.name, "begin": begin, "t": None}
            self.starts.append(start)
            node.end_start(deadline)
            start["t"] = now()

    def watch(self, node):
        self.network.enter(node.name)
        claimed = None
        while not self.over.wait(0.1):
            try:
                status = json.loads(node.get("/v1/status")[2])
            except (OSError, ValueError, http.client.HTTPException) as error:
                node.status, node.silence = None, f"{type(error).__name__}: {error}"
                continue
            if "databases" not in status:
                node.status, node.silence = None, str(status)[:200]
                continue
            node.status = (time.monotonic(), status)
            primary = (status.get("primary") or {}).get("name")
            if primary == node.name and status.get("term") != claimed:
                claimed = status.get("term")
                self.claims(node.name, claimed)

    def fresh(self, node):
        """A node's status, where it is of the last two seconds."""
        seen = node.status
        return seen[1] if seen and time.monotonic() - seen[0] < 2 else None

    def primary(self, among=None, limit=COMES_BACK_SECONDS):
        """The running node that calls itself primary and that the others of `among` call primary."""
        among = among or [node for node in self.nodes if node.runs() and not node.paused]
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline:
            said = [((self.fresh(node) or {}).get("primary") or {}).get("name") for node in among]
            found = [node for node in among if said.count(node.name) == len(among)]
            if found:
                return found[0]
            time.sleep(0.05)
        raise Broken(f"no primary within {limit} s: {dict(zip([node.name for node in among], said))}")

    def wait_voting(self):
        """Waits until every voter votes and is healthy."""
        deadline = time.monotonic() + COMES_BACK_SECONDS
        wanted = {node.name for node in self.voters()}
        voting = set()
        while time.monotonic() < deadline:
            try:
                members = (self.fresh(self.primary(limit=5)) or {}).get("members", [])
            except Broken:
                continue
            voting = {member["name"] for member in members if member["standing"] == "votes" and member["healthy"]}
            if wanted <= voting:
                return
            time.sleep(0.1)
        raise Broken(f"voters do not vote: {sorted(wanted - voting)} after {COMES_BACK_SECONDS} s")

    def client(self, node, *words, limit=30):
        """A command of `skein` against a node; gives whether it succeeded and what it said."""
        command = [*self.network.inside(node.name), "timeout", "-s", "KILL", str(limit), self.skein, *words]
        env = {**os.environ, "SKEIN_URL": f"http://{node.http}"}
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)
        return done.returncode == 0, done.stdout.strip()

    def remove(self):
        """Ends everything that was started and unmounts what was mounted."""
        self.over.set()
        for node in self.nodes:
            if node.process and node.paused:
                node.process.send_signal(signal.SIGCONT)
            node.kill()
        for node in self.nodes:
            for path in [node.mount, os.path.join(node.dir, "disk")]:
                # Several may lie over one another.
                while os.path.ismount(path) or is_mounted(path):
                    if subprocess.run(["umount", "-l", path], stderr=subprocess.DEVNULL).returncode:
                        break
            immutable(node.mount, False)
        self.network.remove()


def named_processes(text):
    """What the processes are whose numbers a message has in brackets."""
    pids = [pid for group in re.findall(r"\[([\d, ]+)\]", text) for pid in re.findall(r"\d+", group)]
    names = []
    for pid in pids:
        try:
            with open(f"/proc/{pid}/cmdline") as source:
                names.append(f"{pid}: {source.read()[:200]}".replace("\0", " "))
        except OSError:
            names.append(f"{pid}: ended meanwhile")
    return "".join(f" ({name})" for name in names)


def immutable(directory, on):
    """Lets nobody create files in a directory, or everybody again; only some file systems can."""
    if not shutil.which("chattr"):
        return
    subprocess.run(["chattr", "+i" if on else "-i", directory], stderr=subprocess.DEVNULL, check=False)


def is_mounted(path):
    with open("/proc/mounts") as mounts:
        return any(line.split()[1] == path for line in mounts)
