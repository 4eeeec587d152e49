//! Copies that are not what the log or their checksums say: not served, and mended from a node that has them.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde_json::Value;

use crate::guarantees::quote;
use crate::harness::{Node, Settings, Voters, eventually, http, needs_skein, sql};

/// A node that compares its databases with their checksums all the time, and whose primary does not move by itself.
fn settings(number: usize, others: &[Node]) -> Settings {
    let mut settings = Settings::primary(&format!("n{number}"));
    settings.bootstrap = others.is_empty();
    settings.join = others.iter().map(|node| node.listen).collect();
    let extra = ["--heartbeat", "200ms", "--election-timeout", "3s", "--limits-scrub-every", "300ms"];
    settings.extra = extra.map(ToOwned::to_owned).into();
    settings
}

fn voters(count: usize) -> Option<Voters> {
    if !needs_skein() {
        return None;
    }
    let dir = tempfile::Builder::new().prefix("skein-copies-").tempdir().unwrap();
    let mut nodes: Vec<Node> = Vec::new();
    for number in 1..=count {
        let mut node = Node::new(dir.path(), settings(number, &nodes));
        node.must_start();
        nodes.push(node);
    }
    let voters = Voters::of(nodes, dir);
    voters.wait_voting(count);
    Some(voters)
}

fn fill(path: &Path, journal: &str) {
    let connection = sql::create(path, journal, 4096);
    sql::run(&connection, "CREATE TABLE t(v); INSERT INTO t VALUES(randomblob(100000)), (1), (2), (3)");
}

/// Why a node does not serve a database; `None` while it does.
fn failure(node: &Node, db: &str) -> Option<String> {
    let status = node.status().ok()?;
    let mut databases = status["databases"].as_array()?.iter();
    databases.find(|found| found["name"] == db)?["failure"].as_str().map(ToOwned::to_owned)
}

/// Turns a few bytes in the middle of a database's file around, as a disk does that forgets.
fn damage(node: &Node, db: &str) {
    let file =
        fs::File::options().read(true).write(true).open(node.data().join("dbs").join(db).join("database"));
    let (file, mut bytes) = (file.unwrap(), [0; 16]);
    let at = 4096 * 12 + 100;
    file.read_exact_at(&mut bytes, at).unwrap();
    file.write_all_at(&bytes.map(|byte| !byte), at).unwrap();
}

fn says(node: &Node, from: usize, words: &[&str]) -> bool {
    node.log()[from..].lines().any(|line| words.iter().all(|word| line.contains(word)))
}

#[test]
fn a_damaged_page_of_a_voter_is_found_while_it_runs_and_mended_from_another_one() {
    quote("is not served there until it is fetched from a node that has it");
    let Some(voters) = voters(3) else { return };
    let (primary, follower) = (voters.primary(), voters.follower());
    for journal in ["wal", "delete"] {
        let db = format!("{journal}.db");
        fill(&voters.nodes[primary].path(&db), journal);
        let good = voters.same_bytes(&db);
        for which in [follower, primary] {
            let node = &voters.nodes[which];
            let from = node.log().len();
            // A copy for an export, or an application that is just closing, keeps the scrub away for a moment.
            damage(node, &db);
            eventually("the damage is named", || {
                says(node, from, &["ERROR", "not what was written", &db]).then_some(())
            });
            eventually("it is mended", || {
                (node.export(&db).as_ref() == Ok(&good) && failure(node, &db).is_none()).then_some(())
            });
            assert_eq!(voters.primary(), primary);
        }
        let connection = sql::open(&voters.nodes[primary].path(&db));
        sql::check_integrity(&connection);
        sql::run(&connection, "INSERT INTO t VALUES(4)");
        drop(connection);
        voters.same_bytes(&db);
    }
}

#[test]
fn a_voter_that_lost_a_database_fetches_it_and_serves_all_of_it_as_primary() {
    quote("A new primary holds every database against the log before it lets applications write");
    let Some(mut voters) = voters(3) else { return };
    let (primary, lost) = (voters.primary(), voters.follower());
    for db in ["a.db", "d/b.db"] {
        fs::create_dir_all(voters.nodes[primary].path("d")).unwrap();
        fill(&voters.nodes[primary].path(db), "wal");
        voters.same_bytes(db);
    }
    let (good, others) = (voters.same_bytes("a.db"), voters.same_bytes("d/b.db"));
    voters.nodes[lost].terminate();
    fs::remove_dir_all(voters.nodes[lost].data().join("dbs/a.db")).unwrap();
    let from = voters.nodes[lost].log().len();
    voters.nodes[lost].must_start();
    let node = &voters.nodes[lost];
    eventually("the loss is named", || says(node, from, &["ERROR", "a.db", "the log says"]).then_some(()));
    eventually("it is fetched", || (node.export("a.db").as_ref() == Ok(&good)).then_some(()));
    voters.wait_voting(3);
    voters.hand_to(lost);
    let connection = voters.open(lost, "a.db");
    assert_eq!(sql::number(&connection, "SELECT count(*) FROM t"), 4);
    sql::run(&connection, "INSERT INTO t VALUES(5)");
    drop(connection);
    voters.same_bytes("a.db");
    assert_eq!(voters.same_bytes("d/b.db"), others);
}

#[test]
fn where_nobody_else_has_a_database_it_is_not_served_until_it_is_restored() {
    let Some(mut voters) = voters(1) else { return };
    fill(&voters.nodes[0].path("app.db"), "delete");
    fill(&voters.nodes[0].path("other.db"), "delete");
    let good = voters.nodes[0].export("app.db").unwrap();
    let copy = voters.dir().join("good.db");
    fs::write(&copy, &good).unwrap();
    let import = |node: &Node| node.must_client(&["db", "import", copy.to_str().unwrap(), "app.db"]);
    damage(&voters.nodes[0], "app.db");
    let failed = |node: &Node| eventually("it is not served", || failure(node, "app.db"));
    assert!(failed(&voters.nodes[0]).contains("not what was written"));
    let node = &voters.nodes[0];
    assert!(sql::try_open(&node.path("app.db")).and_then(|c| sql::rows(&c, "SELECT * FROM t")).is_err());
    let metrics = http::request(node.http, "GET", "/metrics", &[]).unwrap().text();
    assert!(metrics.contains("skein_databases_failed 1"), "{metrics}");
    assert!(node.must_client(&["db", "list"]).contains("NOT SERVED"));
    assert_eq!(sql::number(&sql::open(&node.path("other.db")), "SELECT count(*) FROM t"), 4);
    import(node);
    assert_eq!(failure(node, "app.db"), None);
    assert_eq!(node.export("app.db").unwrap(), changed_as(&good, &node.export("app.db").unwrap()));
    // The whole directory is gone: the log knows of it all the same.
    voters.nodes[0].terminate();
    fs::remove_dir_all(voters.nodes[0].data().join("dbs/app.db")).unwrap();
    voters.nodes[0].must_start();
    let node = &voters.nodes[0];
    assert!(failed(node).contains("it is not here, and the log says"), "{}", node.log());
    import(node);
    assert_eq!(sql::number(&sql::open(&node.path("app.db")), "SELECT count(*) FROM t"), 4);
    let listed: Value = node.status().unwrap();
    assert_eq!(listed["databases"].as_array().unwrap().len(), 2, "{listed}");
}

/// The bytes of `good` with the change counter that `imported` got.
fn changed_as(good: &[u8], imported: &[u8]) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for range in [24..28, 92..96] {
        bytes[range.clone()].copy_from_slice(&imported[range]);
    }
    bytes
}
