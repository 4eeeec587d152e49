//! What a crash leaves in the data directory: a node starts over all of it, wherever it was killed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::harness::{Node, Settings, eventually, needs_skein, sql};

/// A node of one voter with one row in `app.db`.
fn founded(dir: &Path) -> Node {
    let mut node = Node::new(dir, Settings::primary("n1"));
    node.must_start();
    let db = sql::create(&node.path("app.db"), "wal", 4096);
    sql::run(&db, "CREATE TABLE t(v); INSERT INTO t VALUES('kept')");
    node
}

fn value(node: &Node) -> String {
    let path = node.path("app.db");
    eventually("the database is there", || path.exists().then_some(()));
    sql::text(&sql::open(&path), "SELECT group_concat(v) FROM t")
}

/// Puts a file there and names it.
fn plant(planted: &mut Vec<PathBuf>, path: PathBuf, content: &[u8]) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, content).unwrap();
    planted.push(path);
}

#[test]
fn what_a_crash_leaves_in_any_directory_is_removed_and_the_node_starts() {
    if !needs_skein() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut node = founded(dir.path());
    assert!(node.terminate().unwrap().success());
    let data = node.data();
    let mut planted = Vec::new();
    for directory in ["", "raft", "discarded", "tmp"] {
        plant(&mut planted, data.join(directory).join(".tmpAbC123"), b"");
        plant(&mut planted, data.join(directory).join(".tmpzzZZ99"), &[7; 5000]);
    }
    plant(&mut planted, data.join("tmp/.tmpgrave1/database/database"), b"SQLite format 3\0");
    plant(&mut planted, data.join("blobs/.new-AbC123"), &[1; 70_000]);
    plant(&mut planted, data.join("raft/spare-77"), b"");
    plant(&mut planted, data.join("raft/spare-78"), &[0; 9000]);
    plant(&mut planted, data.join("dbs/app.db-mj01234567"), b"super-journal");
    plant(&mut planted, data.join("dbs/app.db/database-journal"), b"");
    plant(&mut planted, data.join("dbs/app.db/tail-wal"), b"");
    // Made and not yet filled: a database without a transaction.
    let mut kept = Vec::new();
    plant(&mut kept, data.join("dbs/new.db/database"), b"");
    plant(&mut kept, data.join("dbs/new.db/pages"), b"");
    std::fs::create_dir_all(data.join("dbs/half-made")).unwrap();
    node.must_start();
    assert_eq!(value(&node), "kept");
    let left: Vec<_> = planted.iter().filter(|path| path.exists()).collect();
    assert!(left.is_empty(), "{left:?}");
    // It writes as before, over what was there, and starts once more.
    sql::run(&sql::open(&node.path("app.db")), "INSERT INTO t VALUES('more')");
    sql::run(&sql::create(&node.path("new.db"), "delete", 4096), "CREATE TABLE t(v)");
    // A directory is there once it is in the log; one that was made before is no obstacle to it.
    std::fs::create_dir(node.path("half-made")).unwrap();
    sql::run(&sql::create(&node.path("half-made/x.db"), "delete", 4096), "CREATE TABLE t(v)");
    node.restart();
    assert_eq!(value(&node), "kept,more");
}

/// The labelled calls that `node` passes from its start until `until` holds.
fn labels(node: &mut Node, until: impl Fn(&Node)) -> BTreeSet<String> {
    let trace = node.data().with_extension("labels");
    node.settings.env = vec![("SKEIN_FAULT_TRACE".into(), trace.to_str().unwrap().into())];
    node.must_start();
    until(node);
    node.terminate();
    node.settings.env.clear();
    let text = std::fs::read_to_string(trace).unwrap();
    text.lines().map(ToOwned::to_owned).collect()
}

/// Each label with the passes at which it is worth dying: small files are replaced by one and the same code.
fn deaths(labels: BTreeSet<String>) -> Vec<(String, u32)> {
    let passes = |label: &str| if label == "write_atomic_rename" { 3 } else { 1 };
    let each = |label: String| (1..=passes(&label)).map(move |pass| (label.clone(), pass));
    labels.into_iter().flat_map(each).collect()
}

/// Starts `node` so that it dies at the given pass of a labelled call, or does not get there.
fn start_and_die(node: &mut Node, (label, pass): &(String, u32)) {
    node.settings.env = vec![("SKEIN_FAULT".into(), format!("{label}:{pass}:kill"))];
    if node.start().is_ok() {
        // Some calls come later, or not at all this time.
        node.wait_for_end(Duration::from_millis(500));
        node.kill9();
    }
    node.settings.env.clear();
}

#[test]
fn a_node_killed_at_any_labelled_call_of_its_start_starts_again() {
    if !needs_skein() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut node = founded(dir.path());
    node.kill9();
    let labels = labels(&mut node, |node| assert_eq!(value(node), "kept"));
    assert!(labels.len() >= 8, "hardly any call is labelled: {labels:?}");
    for death in deaths(labels) {
        start_and_die(&mut node, &death);
        node.start().unwrap_or_else(|error| panic!("after {death:?}: {error}"));
        assert_eq!(value(&node), "kept", "after {death:?}");
        // The next start redoes what this one left.
        node.kill9();
    }
}

#[test]
fn a_voter_killed_at_any_labelled_call_while_it_joins_starts_again_and_has_everything() {
    if !needs_skein() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let first = founded(dir.path());
    let join = |name: &str| {
        let mut settings = Settings::primary(name);
        settings.bootstrap = false;
        settings.join = vec![first.listen];
        Node::new(dir.path(), settings)
    };
    let has_all = |node: &Node| {
        eventually("the node has the row", || {
            let path = node.path("app.db");
            (path.exists() && node.pos("app.db") == first.pos("app.db")).then_some(())
        });
        assert_eq!(value(node), "kept");
    };
    let mut node = join("n2");
    let labels = labels(&mut node, has_all);
    assert!(labels.len() >= 8, "hardly any call is labelled: {labels:?}");
    for death in deaths(labels) {
        // A new node each time: what it dies in is its first start.
        node.kill9();
        crate::harness::unmount(&node.mount());
        first.must_client(&["members", "remove", "n2"]);
        std::fs::remove_dir_all(node.data().parent().unwrap()).unwrap();
        node = join("n2");
        start_and_die(&mut node, &death);
        node.start().unwrap_or_else(|error| panic!("after {death:?}: {error}"));
        has_all(&node);
        // Where it died before it asked to be let in, it is in now.
        let status = first.status().unwrap();
        let members = status["members"].as_array().unwrap();
        assert!(members.iter().any(|member| member["name"] == "n2"), "after {death:?}: {status}");
    }
}
