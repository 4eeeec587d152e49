//! A network of its own for the nodes of one test: a namespace per node, joined by a bridge in yet another one.
//!
//! The host's network is not touched. Links fail silently, as a switch or a cable does: nobody is told that a
//! packet was lost. A link is cut one way by a permanent neighbour entry that leads nowhere, a node is cut off by
//! disabling its port of the bridge.

use std::fs::File;
use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};

use nix::sched::{CloneFlags, setns};

use crate::harness;

/// A hardware address nobody has.
const NOBODY: &str = "02:00:00:00:00:01";

/// One node's place in the network.
#[derive(Clone, Debug)]
pub struct Namespace {
    name: String,
    pub address: Ipv4Addr,
}

impl Namespace {
    /// Does something inside the namespace, on a thread of its own: connections made there are the node's, and so is
    /// the network of a process started there.
    pub fn inside<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/run/netns/{}", self.name)).expect("made by this test");
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                setns(namespace, CloneFlags::CLONE_NEWNET).expect("whoever made a namespace may enter it");
                act()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

/// The bridge and the nodes' namespaces; removed when dropped.
#[derive(Debug)]
pub struct Network {
    bridge: String,
    pub nodes: Vec<Namespace>,
}

impl Network {
    /// A network of `nodes` nodes; none, said aloud, where namespaces cannot be made.
    pub fn new(nodes: u8) -> Option<Self> {
        static NETWORKS: AtomicU8 = AtomicU8::new(1);
        let number = NETWORKS.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("skein-{}-{number}", std::process::id());
        let place = |node| Namespace {
            name: format!("{prefix}-n{node}"),
            address: Ipv4Addr::new(10, 77, number, node),
        };
        // Whole before anything is made, so that its drop removes what was made before a failure.
        let network = Self { bridge: format!("{prefix}-bridge"), nodes: (1..=nodes).map(place).collect() };
        if let Err(error) = ip(&format!("netns add {}", network.bridge)) {
            harness::skip(&format!("no network namespaces (root and iproute2 are needed): {error}"));
            return None;
        }
        network.lay();
        Some(network)
    }

    fn lay(&self) {
        let bridge = &self.bridge;
        must(&format!("-n {bridge} link add bridge type bridge"));
        must(&format!("-n {bridge} link set bridge up"));
        for (index, node) in self.nodes.iter().enumerate() {
            let (name, port) = (&node.name, port(index));
            must(&format!("netns add {name}"));
            must(&format!("-n {bridge} link add {port} type veth peer name eth0 netns {name}"));
            must(&format!("-n {bridge} link set {port} master bridge up"));
            must(&format!("-n {name} address add {}/24 dev eth0", node.address));
            must(&format!("-n {name} link set eth0 up"));
            must(&format!("-n {name} link set lo up"));
        }
    }

    /// From now on nothing sent by node `from` reaches node `to`. The other way is left as it is.
    pub fn cut_one_way(&self, from: usize, to: usize) {
        let (from, to) = (&self.nodes[from].name, self.nodes[to].address);
        must(&format!("-n {from} neighbour replace {to} lladdr {NOBODY} nud permanent dev eth0"));
    }

    /// From now on nothing passes between the two.
    pub fn cut(&self, one: usize, other: usize) {
        self.cut_one_way(one, other);
        self.cut_one_way(other, one);
    }

    /// From now on nothing passes between this node and anyone.
    pub fn cut_off(&self, node: usize) {
        self.set_port(node, false);
    }

    /// Undoes every cut, and what the kernels remember of nodes that did not answer.
    pub fn heal(&self) {
        for node in 0..self.nodes.len() {
            self.set_port(node, true);
        }
        for node in &self.nodes {
            must(&format!("-n {} neighbour flush dev eth0 nud all", node.name));
        }
    }

    fn set_port(&self, node: usize, forwards: bool) {
        let state = if forwards { "3" } else { "0" };
        let words = ["-n", &self.bridge, "link", "set", "dev", &port(node), "state", state];
        run("bridge", &words).unwrap_or_else(|error| panic!("{error}"));
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // Some may never have been made.
        for node in &self.nodes {
            let _ = ip(&format!("netns delete {}", node.name));
        }
        let _ = ip(&format!("netns delete {}", self.bridge));
    }
}

fn port(node: usize) -> String {
    format!("port{}", node + 1)
}

fn must(words: &str) {
    ip(words).unwrap_or_else(|error| panic!("{error}"));
}

fn ip(words: &str) -> Result<(), String> {
    run("ip", &words.split(' ').collect::<Vec<_>>())
}

fn run(program: &str, words: &[&str]) -> Result<(), String> {
    let said = Command::new("timeout").args(["-s", "KILL", "20", program]).args(words).output();
    let output = said.map_err(|error| format!("timeout: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program} {}: {}: {}", words.join(" "), output.status, stderr.trim()))
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::time::Duration;

    use super::*;

    const PORT: u16 = 7777;

    fn sockets(network: &Network) -> Vec<UdpSocket> {
        let bind = |node: &Namespace| node.inside(|| UdpSocket::bind((node.address, PORT)).unwrap());
        let sockets: Vec<_> = network.nodes.iter().map(bind).collect();
        for socket in &sockets {
            socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        }
        sockets
    }

    /// Whether a datagram of node `from` reaches node `to`.
    fn reaches(network: &Network, sockets: &[UdpSocket], from: usize, to: usize) -> bool {
        sockets[from].send_to(b"hello", (network.nodes[to].address, PORT)).unwrap();
        sockets[to].recv_from(&mut [0; 16]).is_ok()
    }

    /// The pairs `(from, to)` that datagrams do not pass, of three nodes.
    fn silent(network: &Network, sockets: &[UdpSocket]) -> Vec<(usize, usize)> {
        let pairs = [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)];
        pairs.into_iter().filter(|(from, to)| !reaches(network, sockets, *from, *to)).collect()
    }

    #[test]
    fn a_cut_loses_what_it_says_and_nothing_else() {
        let Some(network) = Network::new(3) else { return };
        let sockets = sockets(&network);
        assert_eq!(silent(&network, &sockets), []);
        network.cut_one_way(0, 1);
        assert_eq!(silent(&network, &sockets), [(0, 1)]);
        network.heal();
        assert_eq!(silent(&network, &sockets), []);
        network.cut(1, 2);
        assert_eq!(silent(&network, &sockets), [(1, 2), (2, 1)]);
        network.heal();
        network.cut_off(2);
        assert_eq!(silent(&network, &sockets), [(0, 2), (1, 2), (2, 0), (2, 1)]);
        network.heal();
        assert_eq!(silent(&network, &sockets), []);
    }

    #[test]
    fn the_namespaces_are_gone_when_the_network_is_dropped_by_a_panic() {
        let Some(network) = Network::new(1) else { return };
        let paths = [&network.bridge, &network.nodes[0].name].map(|name| format!("/run/netns/{name}"));
        assert!(paths.iter().all(|path| std::path::Path::new(path).exists()));
        let panicked = std::thread::spawn(move || {
            let _dropped_on_the_way = network;
            std::panic::resume_unwind(Box::new("on purpose"));
        });
        assert!(panicked.join().is_err());
        assert!(paths.iter().all(|path| !std::path::Path::new(path).exists()));
    }
}
