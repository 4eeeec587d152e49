//! Drills: what is lost, what every node says of it, and the way back.

use std::fs;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::sql;
use crate::harness::{Node, Settings, Voters, eventually, http, skein};

fn text(node: &Node, path: &str) -> Option<String> {
    http::request(node.http, "GET", path, &[]).ok().map(|reply| reply.text())
}

fn verdict(node: &Node) -> Option<String> {
    Some(node.status().ok()?["verdict"].as_str()?.to_owned())
}

fn member(node: &Node, name: &str) -> Option<Value> {
    node.status().ok()?["members"].as_array()?.iter().find(|member| member["name"] == name).cloned()
}

/// Kills `gone`, and waits until every other node says that the quorum is lost, everywhere where it says such things.
fn lose(voters: &mut Voters, gone: &[usize], left: &[usize]) {
    for which in gone {
        voters.nodes[*which].kill9();
    }
    for which in left {
        let node = &voters.nodes[*which];
        let said = eventually("it says that the quorum is lost", || {
            verdict(node).filter(|verdict| verdict.starts_with("NO QUORUM since 20"))
        });
        assert!(said.contains("nothing can be written"), "{said}");
        let primary = node.path(".primary");
        eventually("nobody is primary, which is not to be primary oneself", || {
            fs::read_to_string(&primary).ok().filter(String::is_empty)
        });
        let ready = text(node, "/readyz?verbose").unwrap();
        assert!(ready.starts_with("NO QUORUM") && ready.contains("\nprimary: unknown\n"), "{ready}");
        assert!(text(node, "/metrics").unwrap().contains("\nskein_quorum 0\n"));
        let lag = fs::read_to_string(node.path(".lag")).unwrap();
        assert_ne!(lag.trim(), "+000000000");
    }
}

#[test]
fn every_node_that_is_left_says_that_the_quorum_is_lost_and_that_it_is_back() {
    let Some(mut voters) = Voters::three() else { return };
    let replica = voters.add_replica();
    let (primary, last) = (voters.primary(), voters.follower());
    let other = 3 - primary - last;
    voters.nodes[replica].terminate();
    voters.nodes[replica].settings.join = vec![voters.nodes[last].listen];
    voters.nodes[replica].must_start();
    sql::run(&sql::create(&voters.nodes[primary].path("a.db"), "wal", 4096), "CREATE TABLE t(v)");
    voters.same_bytes("a.db");
    eventually("all is well", || verdict(&voters.nodes[primary]).filter(|verdict| verdict == "ok"));
    voters.nodes[other].kill9();
    let degraded = eventually("the primary says who is missing", || {
        verdict(&voters.nodes[primary]).filter(|verdict| verdict.starts_with("degraded"))
    });
    let name = voters.nodes[other].settings.name.clone();
    assert_eq!(degraded, format!("degraded: 1 of 3 voters down, no word of {name}"));
    let gone = member(&voters.nodes[primary], &name).unwrap();
    assert_eq!(gone["lag_ms"], Value::Null, "what it has is not known");
    lose(&mut voters, &[primary], &[last, replica]);
    let said = verdict(&voters.nodes[last]).unwrap();
    assert!(said.contains("1 of 3 voters"), "{said}");
    // What cannot be done says why, with an exit code of its own.
    let refused = voters.nodes[last].client(&["members", "remove", &name]);
    assert_eq!(refused.status.code(), Some(5), "{refused:?}");
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(why.contains("no quorum: 1 of 3 voters") && !why.contains("None"), "{why}");
    voters.nodes[other].must_start();
    for which in [last, replica] {
        eventually("the quorum is back", || {
            verdict(&voters.nodes[which]).filter(|verdict| !verdict.starts_with("NO QUORUM"))
        });
    }
}

#[test]
fn a_follower_names_its_primary_again_when_it_hears_it_again() {
    let Some(voters) = Voters::start(2, true) else { return };
    let primary = voters.primary();
    let follower = voters.follower();
    let named = |what: &str, wanted: Value| {
        eventually(what, || {
            (voters.nodes[follower].status().ok()?["primary"]["name"] == wanted).then_some(())
        });
    };
    let name = Value::from(voters.nodes[primary].settings.name.clone());
    named("the primary is known", name.clone());
    // One of two cannot be elected: the term, and who leads in it, stay what they are.
    voters.signal(primary, Signal::SIGSTOP);
    named("it is silent", Value::Null);
    voters.signal(primary, Signal::SIGCONT);
    named("it speaks again", name);
}

#[test]
fn a_survivor_of_three_goes_on_alone_and_the_lost_ones_are_refused() {
    let Some(mut voters) = Voters::three() else { return };
    let (primary, last) = (voters.primary(), voters.follower());
    let other = 3 - primary - last;
    let db = sql::create(&voters.nodes[primary].path("a.db"), "wal", 4096);
    sql::run(&db, "PRAGMA synchronous=FULL; CREATE TABLE t(v); INSERT INTO t VALUES(1)");
    // A large one, too, whose pages travel beside the log.
    sql::run(&db, "CREATE TABLE big(v); INSERT INTO big VALUES(randomblob(3000000))");
    voters.same_bytes("a.db");
    sql::run(&db, "INSERT INTO t VALUES(2)");
    drop(db);
    lose(&mut voters, &[primary, other], &[last]);
    let data = voters.nodes[last].data().display().to_string();
    let recover = |more: &[&str]| skein().args(["recover", "--data", &data]).args(more).output().unwrap();
    let running = recover(&["--yes"]);
    assert!(String::from_utf8_lossy(&running.stderr).contains("in use"), "{running:?}");
    voters.nodes[last].kill9();
    let asked = recover(&[]);
    assert_eq!(asked.status.code(), Some(1), "without --yes nothing happens: {asked:?}");
    let report = String::from_utf8_lossy(&asked.stdout).into_owned();
    assert!(report.contains("is lost") && report.contains("is refused from now on"), "{report}");
    let done = recover(&["--yes"]);
    assert!(done.status.success(), "{done:?}");
    let copies = fs::read_dir(voters.nodes[last].data().parent().unwrap()).unwrap();
    let is_copy =
        |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with("data.before-recovery-");
    assert_eq!(copies.flatten().filter(is_copy).count(), 1);
    voters.nodes[last].must_start();
    let alone = sql::open(&voters.nodes[last].path("a.db"));
    assert_eq!(sql::number(&alone, "SELECT count(*) FROM t"), 2, "nothing that was acknowledged is lost");
    sql::run(&alone, "INSERT INTO t VALUES(3); DELETE FROM big");
    assert_eq!(verdict(&voters.nodes[last]).unwrap(), "ok");
    // One of the lost comes back as it was: it is refused, and the survivor goes on.
    let old = voters.nodes[other].start();
    assert!(old.is_err_and(|why| why.contains("cluster")), "it belongs to another cluster");
    sql::run(&alone, "INSERT INTO t VALUES(4)");
    // With an empty directory it is welcome.
    fs::remove_dir_all(voters.nodes[other].data()).unwrap();
    voters.nodes[other].settings.join = vec![voters.nodes[last].listen];
    voters.nodes[other].must_start();
    eventually("it has everything", || {
        let path = voters.nodes[other].path("a.db");
        let count = path.exists().then(|| sql::number(&sql::open(&path), "SELECT count(*) FROM t"));
        (count == Some(4)).then_some(())
    });
}

#[test]
fn a_data_directory_that_is_no_voters_is_not_recovered() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |data: &str| {
        let output = skein().args(["recover", "--yes", "--data", data]).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(refused(&dir.path().join("none").display().to_string()).contains("does not exist"));
    assert!(refused(&dir.path().display().to_string()).contains("belongs to no node"));
}

#[test]
fn a_replica_that_is_gone_stays_listed_until_it_is_removed_and_a_name_belongs_to_one_node() {
    let Some(mut voters) = Voters::start(1, true) else { return };
    let replica = voters.add_replica();
    let name = voters.nodes[replica].settings.name.clone();
    let twin_dir = tempfile::tempdir().unwrap();
    let settings = Settings::replica(&name, voters.nodes[0].listen);
    let twin = Node::new(twin_dir.path(), settings);
    let mut child = twin.command().spawn().unwrap();
    let why = eventually("the second of a name says why it is not let in", || {
        text(&twin, "/readyz").filter(|why| why.contains("has the name"))
    });
    assert!(why.contains("--name"), "{why}");
    child.kill().unwrap();
    child.wait().unwrap();
    voters.nodes[replica].terminate();
    let gone = eventually("it is listed as gone", || {
        member(&voters.nodes[0], &name).filter(|member| member["healthy"] == false)
    });
    assert_eq!(gone["lag_ms"], Value::Null);
    voters.nodes[0].must_client(&["members", "remove", &name]);
    assert_eq!(member(&voters.nodes[0], &name), None);
    voters.nodes[replica].must_start();
    eventually("it is listed again", || {
        member(&voters.nodes[0], &name).filter(|member| member["healthy"] == true)
    });
    // It keeps saying so while it is there: a node that is there is not removed.
    let there = voters.nodes[0].client(&["members", "remove", &name]);
    assert_eq!(there.status.code(), Some(1), "{there:?}");
    assert!(member(&voters.nodes[0], &name).is_some());
}
