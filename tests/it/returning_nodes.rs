//! Nodes that come back: with an older copy of their data, or after they were removed.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::harness::{Node, Voters, eventually, http, skein, sql, within};

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(copied.success());
}

fn member(voters: &Voters, primary: usize, name: &str) -> Option<serde_json::Value> {
    let status = voters.nodes[primary].status().ok()?;
    status["members"].as_array()?.iter().find(|member| member["name"] == name).cloned()
}

/// `/readyz`: the status and the text.
fn readiness(node: &Node) -> Option<(u16, String)> {
    let reply = http::request(node.http, "GET", "/readyz", &[]).ok()?;
    Some((reply.status, reply.text()))
}

/// The command that a text names, run as it stands there.
fn run_named(text: &str, begins: &str) {
    let start = text.find(begins).unwrap_or_else(|| panic!("no {begins:?} in {text}"));
    let command = text[start..].split(|c: char| c == ',' || c == ';' || c == '\n').next().unwrap().trim();
    let words: Vec<_> = command.split_whitespace().collect();
    let output = skein().args(&words[1..]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_voter_with_an_older_copy_of_its_data_does_not_count_and_says_the_remedy_which_works() {
    let Some(mut voters) = Voters::three() else { return };
    let primary = voters.primary();
    let old = voters.follower();
    let name = voters.nodes[old].settings.name.clone();
    let db = sql::create(&voters.nodes[primary].path("app.db"), "wal", 4096);
    sql::run(&db, "PRAGMA synchronous=FULL; CREATE TABLE t(v); INSERT INTO t VALUES(1)");
    voters.nodes[old].terminate();
    let kept = voters.dir().join("kept");
    copy(&voters.nodes[old].data(), &kept);
    voters.nodes[old].must_start();
    voters.wait_voting(3);
    for row in 2..=50 {
        sql::run(&db, &format!("INSERT INTO t VALUES({row})"));
    }
    eventually("it has all", || {
        (voters.nodes[old].pos("app.db") == voters.nodes[primary].pos("app.db")).then_some(())
    });
    voters.nodes[old].terminate();
    let data = voters.nodes[old].data();
    std::fs::remove_dir_all(&data).unwrap();
    copy(&kept, &data);
    let said = voters.nodes[old].start().expect_err("it runs on what it has forgotten");
    assert!(said.contains("older copy"), "{said}");
    // The other two go on, and nothing fails.
    for row in 51..=60 {
        sql::run(&db, &format!("INSERT INTO t VALUES({row})"));
    }
    let seen = member(&voters, primary, &name).unwrap();
    assert_eq!(seen["healthy"], false, "{seen}");
    // As the text says.
    run_named(&said, "skein members remove");
    std::fs::remove_dir_all(&data).unwrap();
    voters.nodes[old].must_start();
    voters.wait_voting(3);
    assert_eq!(sql::number(&voters.open(old, "app.db"), "SELECT count(*) FROM t"), 60);
}

#[test]
fn a_voter_removed_while_it_was_down_waits_and_is_let_in_by_the_command_it_names() {
    let Some(mut voters) = Voters::three() else { return };
    let primary = voters.primary();
    let removed = voters.follower();
    let name = voters.nodes[removed].settings.name.clone();
    let db = sql::create(&voters.nodes[primary].path("app.db"), "wal", 4096);
    sql::run(&db, "CREATE TABLE t(v); INSERT INTO t VALUES(1)");
    voters.nodes[removed].terminate();
    voters.nodes[primary].must_client(&["members", "remove", &name]);
    sql::run(&db, "INSERT INTO t VALUES(2)");
    let addr = voters.nodes[removed].http;
    let node = &mut voters.nodes[removed];
    std::thread::scope(|scope| {
        let started = scope.spawn(move || node.start());
        let text = eventually("it says that it was removed", || {
            let reply = http::request(addr, "GET", "/readyz", &[]).ok()?;
            let text = reply.text();
            (reply.status == 503 && text.contains("members add")).then_some(text)
        });
        assert!(!started.is_finished(), "it does not wait");
        run_named(&text, "skein members add");
        started.join().unwrap().unwrap();
    });
    voters.wait_voting(3);
    assert_eq!(sql::number(&voters.open(removed, "app.db"), "SELECT count(*) FROM t"), 2);
    assert!(voters.nodes[removed].log().contains("members add"), "{}", voters.nodes[removed].log());
}

#[test]
fn a_voter_removed_while_it_runs_says_so_and_is_not_ready_until_it_is_let_in() {
    let Some(voters) = Voters::three() else { return };
    let primary = voters.primary();
    let removed = voters.follower();
    let node = &voters.nodes[removed];
    assert_eq!(readiness(node).unwrap().0, 200);
    voters.nodes[primary].must_client(&["members", "remove", &node.settings.name]);
    let text = eventually("it is not ready and says why", || {
        let (status, text) = readiness(node)?;
        (status == 503 && text.contains("members add")).then_some(text)
    });
    let lag = || std::fs::read_to_string(node.path(".lag")).ok().map(|lag| lag.trim().to_owned());
    assert!(
        within(Duration::from_secs(5), || lag().filter(|lag| lag.ends_with("2147483647"))).is_some(),
        "{:?}",
        lag()
    );
    assert!(node.log().contains("was removed from the cluster"), "{}", node.log());
    run_named(&text, "skein members add");
    voters.wait_voting(3);
    eventually("it is ready again", || (readiness(node)?.0 == 200).then_some(()));
}
