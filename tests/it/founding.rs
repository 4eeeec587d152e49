//! New nodes that are started alike found one cluster together, whatever the order they come in.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use crate::harness::sql;
use crate::harness::{Node, Settings, Voters, eventually, needs_skein};

/// `count` nodes that expect one another, not started.
fn expecting(dir: &Path, count: usize) -> Vec<Node> {
    let settings = |number| Settings { bootstrap: false, ..Settings::primary(&format!("n{number}")) };
    let mut nodes: Vec<Node> = (1..=count).map(|number| Node::new(dir, settings(number))).collect();
    let all: Vec<SocketAddr> = nodes.iter().map(|node| node.listen).collect();
    for node in &mut nodes {
        node.settings.join.clone_from(&all);
        node.settings.extra = vec!["--bootstrap-expect".into(), count.to_string()];
    }
    nodes
}

/// Starts all at once, each in a thread of its own that first does what `before` says.
fn start_all(nodes: Vec<Node>, before: impl Fn(usize, &mut Node) + Sync) -> Vec<Node> {
    std::thread::scope(|scope| {
        let start = |(which, mut node): (usize, Node)| {
            let before = &before;
            scope.spawn(move || {
                before(which, &mut node);
                node.must_start();
                node
            })
        };
        let started: Vec<_> = nodes.into_iter().enumerate().map(start).collect();
        started.into_iter().map(|node| node.join().expect("it starts")).collect()
    })
}

fn cluster_of(node: &Node) -> String {
    let identity = fs::read_to_string(node.data().join("node.toml")).unwrap();
    let line = identity.lines().find(|line| line.starts_with("cluster =")).expect("it has a cluster");
    line.to_owned()
}

fn form_one_cluster(nodes: Vec<Node>, dir: tempfile::TempDir) -> Voters {
    let voters = Voters::of(nodes, dir);
    voters.wait_voting(voters.nodes.len());
    let clusters: Vec<String> = voters.nodes.iter().map(cluster_of).collect();
    assert!(clusters.iter().all(|cluster| *cluster == clusters[0]), "{clusters:?}");
    let primary = voters.primary();
    sql::run(&sql::create(&voters.nodes[primary].path("a.db"), "wal", 4096), "CREATE TABLE t(v)");
    voters.same_bytes("a.db");
    voters
}

#[test]
fn nodes_with_one_join_list_found_one_cluster_whatever_the_order() {
    if !needs_skein() {
        return;
    }
    // How long each one waits before it starts, in ms; where a node is killed once while others wait for it.
    for (delays, killed) in
        [([0, 0, 0], None), ([900, 0, 400], None), ([0, 500, 0], Some(0)), ([0, 0, 0], Some(1))]
    {
        let dir = tempfile::tempdir().unwrap();
        let nodes = start_all(expecting(dir.path(), 3), |which, node| {
            std::thread::sleep(Duration::from_millis(delays[which]));
            if killed == Some(which) {
                let mut child = node.command().spawn().unwrap();
                std::thread::sleep(Duration::from_millis(350));
                child.kill().unwrap();
                child.wait().unwrap();
            }
        });
        let mut voters = form_one_cluster(nodes, dir);
        // All of them go on with the very same options.
        for node in &mut voters.nodes {
            node.terminate();
        }
        let Voters { nodes, .. } = &mut voters;
        let again = start_all(std::mem::take(nodes), |_, _| {});
        *nodes = again;
        voters.wait_voting(3);
    }
}

#[test]
fn a_founder_alone_takes_no_writes_before_the_others_are_there() {
    if !needs_skein() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = expecting(dir.path(), 3);
    let third = nodes.pop().expect("there are three");
    let mut waiting: Vec<_> = nodes.iter().map(|node| node.command().spawn().unwrap()).collect();
    std::thread::sleep(Duration::from_secs(2));
    for (node, child) in nodes.iter().zip(&mut waiting) {
        assert!(child.try_wait().unwrap().is_none(), "it waits");
        let identity = fs::read_to_string(node.data().join("node.toml")).unwrap();
        assert!(!identity.contains("cluster ="), "{identity}");
        child.kill().unwrap();
        child.wait().unwrap();
    }
    nodes.push(third);
    form_one_cluster(start_all(nodes, |_, _| {}), dir);
}

#[test]
fn one_configuration_file_serves_all_nodes_and_a_node_that_comes_later() {
    if !needs_skein() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = expecting(dir.path(), 3);
    let join: Vec<String> = nodes.iter().map(|node| format!("{:?}", node.listen.to_string())).collect();
    let file = dir.path().join("skein.toml");
    let text = format!("bootstrap_expect = 3\njoin = [{}, \"${{SPARE}}\"]\n", join[..2].join(", "));
    fs::write(&file, text).unwrap();
    for node in &mut nodes {
        node.settings.extra = vec!["--config".into(), file.display().to_string()];
        node.settings.env.push(("SPARE".into(), join[2].trim_matches('"').to_owned()));
        node.settings.join.clear();
    }
    let mut voters = form_one_cluster(start_all(nodes, |_, _| {}), dir);
    // One whose data directory is lost finds the cluster, not two others to found a new one with.
    let primary = voters.primary();
    let lost = voters.follower();
    voters.nodes[lost].terminate();
    let name = voters.nodes[lost].settings.name.clone();
    voters.nodes[primary].must_client(&["members", "remove", &name]);
    let data = voters.nodes[lost].data();
    fs::remove_dir_all(&data).unwrap();
    voters.nodes[lost].must_start();
    voters.wait_voting(3);
    assert_eq!(cluster_of(&voters.nodes[lost]), cluster_of(&voters.nodes[primary]));
    eventually("it has the database again", || voters.nodes[lost].path("a.db").exists().then_some(()));
}

#[test]
fn wait_ready_returns_when_the_mount_may_be_used_and_says_3_when_it_is_too_late() {
    if !needs_skein() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let node = Node::new(dir.path(), Settings::primary("n1"));
    let late = node.client(&["wait", "--ready", "--timeout", "300ms"]);
    assert_eq!(late.status.code(), Some(3), "{late:?}");
    assert!(String::from_utf8_lossy(&late.stderr).contains("no node answers"), "{late:?}");
    let mut child = node.command().spawn().unwrap();
    node.must_client(&["wait", "--ready"]);
    sql::run(&sql::create(&node.path("a.db"), "wal", 4096), "CREATE TABLE t(v)");
    let said = node.must_client(&["wait", "a.db", "--ready", "--json"]);
    assert!(said.contains("\"name\": \"a.db\""), "{said}");
    // All of them in one go, each below its own name; a script that does not ask goes on without a terminal.
    fs::create_dir(node.path("tenants")).unwrap();
    sql::run(
        &sql::create(&node.path("tenants/7.db"), "wal", 4096),
        "CREATE TABLE t(v); INSERT INTO t VALUES(7)",
    );
    node.must_client(&["wait", "tenants/7.db"]);
    let copies = dir.path().join("copies");
    let said = node.must_client(&["db", "export", "--all", &copies.display().to_string()]);
    assert!(said.contains("a.db 0") && said.contains("tenants/7.db 0"), "{said}");
    assert_eq!(sql::number(&sql::open(&copies.join("tenants/7.db")), "SELECT v FROM t"), 7);
    // And as SQL, which other databases read.
    node.must_client(&["db", "export", "--format", "sql", "--all", &copies.display().to_string()]);
    let script = fs::read_to_string(copies.join("tenants/7.db.sql")).unwrap();
    assert_eq!(script, node.must_client(&["db", "export", "--format", "sql", "tenants/7.db", "-"]));
    let made = sql::open(&dir.path().join("made.db"));
    sql::run(&made, &script);
    assert_eq!(sql::number(&made, "SELECT v FROM t"), 7);
    let left: Vec<_> = fs::read_dir(&copies).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().contains("skein-export")), "{left:?}");
    let listed: serde_json::Value =
        serde_json::from_str(&node.must_client(&["db", "list", "--json"])).unwrap();
    assert_eq!(listed.as_array().map(Vec::len), Some(2));
    node.must_client(&["db", "drop", "a.db"]);
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(child.wait().unwrap().success());
}
