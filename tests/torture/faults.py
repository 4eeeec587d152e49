"""What happens to the nodes of a torture run.

A fault is a function of the run: it strikes, lasts, and heals before it returns. Nodes whose daemon ends lose their
clients first or at the same time, because applications of a dead mount keep it.
"""
import os
import signal
import time

from cluster import Broken


def lasts(run, least=0.5, most=4.0):
    time.sleep(run.random.uniform(least, most))


def follower(run):
    primary = run.cluster.primary()
    others = [node for node in run.cluster.voters() if node is not primary]
    return run.random.choice(others)


def back(run, nodes):
    """Starts ended nodes and their clients again."""
    run.kill_clients(nodes)
    run.cluster.start(nodes)
    run.start_clients(nodes)


def kill(run, nodes):
    for node in nodes:
        node.kill()
    lasts(run)
    back(run, nodes)


def kill_primary(run):
    kill(run, [run.cluster.primary()])


def kill_follower(run):
    kill(run, [follower(run)])


def kill_replica(run):
    kill(run, [run.random.choice([node for node in run.cluster.nodes if node.role == "replica"])])


def kill_all(run):
    kill(run, list(run.cluster.nodes))


def kill_at_start(run):
    """Kills a daemon while it starts, several times."""
    node = run.random.choice(run.cluster.nodes)
    node.kill()
    run.kill_clients([node])
    for _ in range(4):
        node.begin_start()
        time.sleep(run.random.uniform(0.02, 0.6))
        node.kill()
    back(run, [node])


def stop(run, nodes, least, most):
    for node in nodes:
        node.signal(signal.SIGSTOP)
    lasts(run, least, most)
    for node in nodes:
        node.signal(signal.SIGCONT)


def stop_primary(run):
    stop(run, [run.cluster.primary()], 0.2, 4)


def stop_followers(run):
    """The primary alone: it may acknowledge nothing until one of them goes on."""
    primary = run.cluster.primary()
    stop(run, [node for node in run.cluster.voters() if node is not primary], 0.3, 4)


def term(run, node):
    node.terminate()
    # What goes on would write into the plain directory below the mount.
    run.kill_clients([node])
    lasts(run, 0, 2)
    back(run, [node])


def term_primary(run):
    node = run.cluster.primary()
    # Applications end before the node that they use, as under a supervisor, or lose their mount.
    if run.random.random() < 0.5:
        run.end_clients([node])
    term(run, node)


def term_follower(run):
    term(run, follower(run))


def term_replica(run):
    term(run, run.random.choice([node for node in run.cluster.nodes if node.role == "replica"]))


def handoff_loop(run):
    for _ in range(run.random.randint(3, 8)):
        target = run.random.choice(run.cluster.voters())
        good, said = run.cluster.client(target, "handoff", target.name)
        if not good:
            run.figures.count_error("handoff", said)
        time.sleep(run.random.uniform(0.1, 0.5))


def cut_primary(run):
    run.cluster.network.cut_off(run.cluster.primary().name)
    lasts(run)
    run.cluster.network.heal()


def cut_follower(run):
    run.cluster.network.cut_off(follower(run).name)
    lasts(run)
    run.cluster.network.heal()


def cut_replica(run):
    run.cluster.network.cut_off(run.random.choice([n for n in run.cluster.nodes if n.role == "replica"]).name)
    lasts(run)
    run.cluster.network.heal()


def mute_primary(run):
    """Nothing that the primary sends arrives; it hears the others."""
    primary = run.cluster.primary()
    for node in run.cluster.nodes:
        if node is not primary:
            run.cluster.network.cut_one_way(primary.name, node.name)
    lasts(run)
    run.cluster.network.heal()


def deaf_primary(run):
    """Nothing arrives at the primary; the others hear it."""
    primary = run.cluster.primary()
    for node in run.cluster.nodes:
        if node is not primary:
            run.cluster.network.cut_one_way(node.name, primary.name)
    lasts(run)
    run.cluster.network.heal()


def members(run, node, *words):
    good, said = run.cluster.client(node, "members", *words)
    if not good:
        run.figures.count_error(f"members {words[0]}", said)
    return good


def remove_and_add(run):
    """A running voter is removed and let in again."""
    node = follower(run)
    if members(run, run.cluster.primary(), "remove", node.name):
        lasts(run, 0.2, 2)
        deadline = time.monotonic() + 20
        others = [other for other in run.cluster.nodes if other is not node]
        while not members(run, run.cluster.primary(others), "add", f"{run.cluster.network.address[node.name]}:20203"):
            if time.monotonic() > deadline:
                raise Broken(f"removed voter is not let in again: {node.name}")
            time.sleep(0.5)
    run.cluster.wait_voting()


def demote_and_promote(run):
    node = follower(run)
    if members(run, run.cluster.primary(), "demote", node.name):
        lasts(run, 0.2, 2)
        deadline = time.monotonic() + 20
        while not members(run, run.cluster.primary(), "promote", node.name):
            if time.monotonic() > deadline:
                raise Broken(f"demoted voter is not promoted again: {node.name}")
            time.sleep(0.5)
    run.cluster.wait_voting()


def wipe(run, node):
    run.note_discarded()
    node.kill()
    run.kill_clients([node])
    if node.role == "voter":
        # An empty data directory is a new node: the old one has to be removed first.
        others = [other for other in run.cluster.nodes if other is not node]
        deadline = time.monotonic() + 20
        while not members(run, run.cluster.primary(others), "remove", node.name):
            if time.monotonic() > deadline:
                raise Broken(f"killed voter cannot be removed: {node.name}")
            time.sleep(0.5)
    node.wipe()
    run.wiped = True
    back(run, [node])
    run.cluster.wait_voting()


def wipe_follower(run):
    wipe(run, follower(run))


def wipe_replica(run):
    wipe(run, run.random.choice([node for node in run.cluster.nodes if node.role == "replica"]))


def set_clocks(run):
    for node in run.cluster.nodes:
        node.set_clock(run.random.choice([-86400, -3600, -60, 60, 7200, 86400 * 400]))


def clock_jump(run):
    set_clocks(run)
    lasts(run, 1.5, 4)
    for node in run.cluster.nodes:
        node.set_clock(0)
    time.sleep(1.2)


def full_disk(run):
    """Every node's disk, or one, is full for a while. What a node cannot write it may refuse; it may not end."""
    nodes = run.random.choice([run.cluster.nodes, [run.cluster.primary()]])
    ballast = [os.path.join(node.dir, "disk", "ballast") for node in nodes]
    for path in ballast:
        try:
            with open(path, "wb") as out:
                while True:
                    out.write(b"\x07" * 65536)
                    out.flush()
        except OSError:
            # Full, if need be before the first byte.
            pass
    lasts(run, 1, 4)
    for path in ballast:
        if os.path.exists(path):
            os.unlink(path)


ANY = [kill_primary, kill_all, stop_primary, term_primary, clock_jump, kill_at_start]
SEVERAL = [kill_follower, stop_followers, term_follower, handoff_loop, cut_primary, cut_follower, mute_primary,
           deaf_primary, remove_and_add, demote_and_promote, wipe_follower]
REPLICAS = [kill_replica, term_replica, cut_replica, wipe_replica]


def of(shape):
    """The faults that a shape can have, each once."""
    kinds = list(ANY)
    if shape.voters > 1:
        kinds += SEVERAL
    if shape.replicas:
        kinds += REPLICAS
    if shape.disk_mib:
        kinds += [full_disk, full_disk, full_disk]
    return kinds
