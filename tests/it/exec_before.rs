//! `exec.before`: once for each release, on the primary, before the application starts anywhere.

use std::path::Path;

use crate::harness::{Node, PATIENCE, Settings, Voters, eventually, needs_skein};

fn lines(path: &Path) -> Vec<String> {
    std::fs::read_to_string(path).unwrap_or_default().lines().map(ToOwned::to_owned).collect()
}

/// A node whose application, and what runs before it, note in `log` what they are.
fn settings(number: usize, nodes: &[Node], log: &Path, before: &str) -> Settings {
    let mut settings = Settings::primary(&format!("n{number}"));
    settings.bootstrap = number == 1;
    settings.join = nodes.iter().map(|node| node.listen).collect();
    release(&mut settings, "v1", log, before);
    settings
}

fn release(settings: &mut Settings, release: &str, log: &Path, before: &str) {
    let (name, log) = (settings.name.clone(), log.display());
    let note = format!("echo before {release} {name} >>{log}; {before}");
    settings.env = vec![("SKEIN_EXEC_BEFORE".into(), note), ("SKEIN_EXEC_RELEASE".into(), release.into())];
    let program = format!("echo start {release} {name} >>{log}; exec sleep 1000");
    settings.extra = ["--", "sh", "-c", &program].map(ToOwned::to_owned).into();
}

fn has(log: &Path, line: &str) {
    eventually(line, || lines(log).iter().any(|known| known == line).then_some(()));
}

#[test]
fn each_release_is_prepared_once_by_the_first_voter_that_has_it() {
    if !needs_skein() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let mut nodes: Vec<Node> = Vec::new();
    for number in 1..=3 {
        let mut node = Node::new(dir.path(), settings(number, &nodes, &log, "true"));
        node.must_start();
        nodes.push(node);
    }
    let mut voters = Voters::of(nodes, tempfile::tempdir().unwrap());
    voters.wait_voting(3);
    (1..=3).for_each(|number| has(&log, &format!("start v1 n{number}")));
    assert_eq!(lines(&log)[..2], ["before v1 n1", "start v1 n1"]);
    // Node by node, the primary last.
    for which in [1, 2, 0] {
        let node = &mut voters.nodes[which];
        node.terminate();
        release(&mut node.settings, "v2", &log, "true");
        node.must_start();
        has(&log, &format!("start v2 n{}", which + 1));
        voters.wait_voting(3);
        assert_eq!(voters.primary(), 1, "the first one of the new release has taken over, and no other");
    }
    let before: Vec<_> = lines(&log).into_iter().filter(|line| line.starts_with("before")).collect();
    assert_eq!(before, ["before v1 n1", "before v2 n2"]);
}

#[test]
fn applications_wait_for_it_everywhere_and_the_primary_stays() {
    if !needs_skein() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (log, done) = (dir.path().join("log"), dir.path().join("done"));
    let before = format!("until test -e {}; do sleep 0.02; done", done.display());
    let mut nodes: Vec<Node> = Vec::new();
    for number in 1..=3 {
        let mut node = Node::new(dir.path(), settings(number, &nodes, &log, &before));
        node.must_start();
        nodes.push(node);
    }
    let mut replica = Settings { role: "replica", ..settings(4, &nodes, &log, &before) };
    replica.join.truncate(1);
    let mut replica = Node::new(dir.path(), replica);
    replica.must_start();
    for node in nodes[1..].iter().chain([&replica]) {
        eventually("it waits", || {
            node.log().contains("the primary has not ended exec.before of release \"v1\"").then_some(())
        });
    }
    let refused = nodes[0].client(&["handoff", "n2"]);
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && why.contains("exec.before of release \"v1\" is running"), "{why}");
    assert_eq!(lines(&log), ["before v1 n1"]);
    std::fs::write(&done, "").unwrap();
    (1..=4).for_each(|number| has(&log, &format!("start v1 n{number}")));
    assert_eq!(lines(&log).len(), 5, "{:?}", lines(&log));
}

#[test]
fn where_it_fails_the_node_ends_with_its_exit_code() {
    if !needs_skein() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let mut node = Node::new(dir.path(), settings(1, &[], &log, "exit 7"));
    node.must_start();
    let status = node.wait_for_end(PATIENCE).expect("it ends");
    assert_eq!(status.code(), Some(7), "{}", node.log());
    assert_eq!(lines(&log), ["before v1 n1"]);
}
