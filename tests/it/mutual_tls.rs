//! A cluster whose nodes know each other by certificates.

use std::fs::File;
use std::process::Stdio;
use std::time::Duration;

use crate::harness::certs::Certs;
use crate::harness::{Node, Settings, Voters, eventually, needs_skein, skein, sql};

struct Secured {
    voters: Voters,
    certs: Certs,
}

/// Three voters and a replica, each with a certificate.
fn secured() -> Secured {
    let dir = tempfile::Builder::new().prefix("skein-tls-").tempdir().unwrap();
    let certs = Certs::init(&dir.path().join("certs"));
    let mut first = Node::new(dir.path(), Settings { extra: certs.issue("n1"), ..Settings::primary("n1") });
    first.must_start();
    let founder = first.listen;
    let mut nodes = vec![first];
    for name in ["n2", "n3"] {
        let settings =
            Settings { role: "voter", extra: certs.issue(name), ..Settings::replica(name, founder) };
        let mut node = Node::new(dir.path(), settings);
        node.must_start();
        nodes.push(node);
    }
    let voters = Voters::of(nodes, dir);
    voters.wait_voting(3);
    Secured { voters, certs }
}

fn insert(voters: &Voters, some: &[usize], value: u32) -> usize {
    voters.first_write("app.db", &format!("INSERT INTO t VALUES({value})"), some).0
}

#[test]
fn three_voters_and_a_replica_elect_commit_and_join_over_tls() {
    if !needs_skein() {
        return;
    }
    let Secured { mut voters, certs } = secured();
    let writer = sql::create(&voters.nodes[voters.primary()].path("app.db"), "wal", 4096);
    sql::run(&writer, "PRAGMA synchronous=FULL; CREATE TABLE t(v)");
    drop(writer);
    insert(&voters, &[0, 1, 2], 1);
    let dir = voters.dir();
    let joins = voters.nodes.iter().map(|node| node.listen).collect::<Vec<_>>();
    let settings =
        Settings { join: joins, extra: certs.issue("r1"), ..Settings::replica("r1", voters.nodes[0].listen) };
    let mut replica = Node::new(&dir, settings);
    replica.must_start();
    // The primary is killed: the others elect one, and what was acknowledged is there.
    let killed = voters.primary();
    voters.nodes[killed].kill9();
    let rest: Vec<_> = (0..3).filter(|which| *which != killed).collect();
    let elected = insert(&voters, &rest, 2);
    assert_ne!(elected, killed);
    voters.nodes[killed].must_start();
    voters.wait_voting(3);
    insert(&voters, &[0, 1, 2], 3);
    let count = |node: &Node| {
        let db = sql::try_open(&node.path("app.db"))?;
        db.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0))
    };
    for node in voters.nodes.iter().chain([&replica]) {
        eventually("every node has all rows", || (count(node) == Ok(3)).then_some(()));
    }
    // Planned, over the same connections.
    let to = rest[0].min(rest[1]);
    let name = voters.nodes[to].settings.name.clone();
    voters.nodes[to].client(&["handoff", &name]);
    eventually("it is primary", || (voters.primary() == to).then_some(()));
    // A change set that does not fit into an entry goes another way.
    let db = voters.open(to, "app.db");
    sql::run(&db, "INSERT INTO t VALUES(randomblob(6000000))");
    drop(db);
    voters.same_bytes("app.db");
}

#[test]
fn new_certificates_are_used_without_a_restart_and_commits_go_on() {
    if !needs_skein() {
        return;
    }
    let Secured { mut voters, certs } = secured();
    let primary = voters.primary();
    let writer = sql::create(&voters.nodes[primary].path("app.db"), "wal", 4096);
    sql::run(&writer, "PRAGMA synchronous=FULL; CREATE TABLE t(v)");
    let names = ["n1", "n2", "n3"];
    for name in names {
        certs.issue(&format!("new-{name}"));
        for suffix in ["-key.pem", ".pem"] {
            std::fs::copy(certs.file(&format!("new-{name}{suffix}")), certs.file(&format!("{name}{suffix}")))
                .unwrap();
        }
    }
    sql::run(&writer, "INSERT INTO t VALUES(1)");
    drop(writer);
    let (first, second) = ((primary + 1) % 3, (primary + 2) % 3);
    // Whoever comes back meets the others with new certificates on both sides.
    for which in [first, second] {
        voters.nodes[which].restart();
        voters.wait_voting(3);
    }
    insert(&voters, &[0, 1, 2], 2);
    voters.same_bytes("app.db");
    let log = voters.nodes[primary].log();
    assert!(log.contains("certificates are reloaded"), "{log}");
}

#[test]
fn whoever_has_no_certificate_of_the_authority_does_not_join() {
    if !needs_skein() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (certs, other) = (Certs::init(&dir.path().join("certs")), Certs::init(&dir.path().join("other")));
    let mut primary = Node::new(dir.path(), Settings { extra: certs.issue("n1"), ..Settings::primary("n1") });
    primary.must_start();
    certs.issue_expired("old", Duration::from_secs(3600));
    let strangers = [
        ("x1", Vec::new(), "it speaks no TLS"),
        ("x2", other.issue("x2"), "authority"),
        ("x3", certs.options("old"), "expired"),
    ];
    for (name, extra, why) in strangers {
        let settings = Settings { extra, role: "voter", ..Settings::replica(name, primary.listen) };
        let node = Node::new(dir.path(), settings);
        let log = File::create(dir.path().join(name).join("stderr")).unwrap();
        let mut child = node.command().stdout(Stdio::null()).stderr(log).spawn().unwrap();
        eventually("the stranger says that it cannot join", || {
            node.log().contains("cannot join").then_some(())
        });
        eventually("the primary says why", || primary.log().contains(why).then_some(()));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert_eq!(primary.status().unwrap()["members"].as_array().unwrap().len(), 1);
    // And is told so beforehand, where it asks.
    let at = primary.listen.to_string();
    for (options, check, why) in [
        (Vec::new(), "FAILURE  other node", "does not let this node in"),
        (other.options("x2"), "FAILURE  other node", "does not let this node in"),
        (certs.options("old"), "FAILURE  tls", "has expired"),
        (certs.issue("x4"), "ok       other node", "is n1, a voter of cluster"),
    ] {
        let output = skein().args(["doctor", "--join", &at]).args(&options).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let finding = text.lines().find(|line| line.starts_with(check));
        assert!(finding.is_some_and(|line| line.contains(why)), "{options:?}: {text}");
    }
    let told = primary.log().lines().filter(|line| line.contains("refused a connection")).count();
    assert!(told <= 6, "{}", primary.log());
}
