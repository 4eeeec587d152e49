//! Nodes that come back: with an older copy of their data, or after they were removed.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rusqlite::Connection;

use crate::harness::{Cluster, Node, Options, Voters, eventually, http, skein, sql, within};

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

/// Writes, again where the machine is so busy that the primary changes: rows are there once all the same.
fn write(db: &Connection, statement: &str) {
    eventually("a write succeeds", || db.execute_batch(statement).ok());
}

fn app(path: &Path) -> Connection {
    let db = sql::create(path, "wal", 4096);
    write(
        &db,
        "PRAGMA synchronous=FULL; CREATE TABLE IF NOT EXISTS t(v PRIMARY KEY); INSERT OR IGNORE INTO t VALUES(1)",
    );
    db
}

/// The command that a text names, run as it stands there.
fn run_named(text: &str, begins: &str) {
    let start = text.find(begins).unwrap_or_else(|| panic!("no {begins:?} in {text}"));
    let command = text[start..].split([',', ';', '\n']).next().unwrap().trim();
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
    let db = app(&voters.nodes[primary].path("app.db"));
    voters.nodes[old].terminate();
    let kept = voters.dir().join("kept");
    copy(&voters.nodes[old].data(), &kept);
    voters.nodes[old].must_start();
    voters.wait_voting(3);
    for row in 2..=50 {
        write(&db, &format!("INSERT OR IGNORE INTO t VALUES({row})"));
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
        write(&db, &format!("INSERT OR IGNORE INTO t VALUES({row})"));
    }
    eventually("it does not count as healthy", || {
        (member(&voters, primary, &name).unwrap()["healthy"] == false).then_some(())
    });
    // As the text says.
    run_named(&said, "skein members remove");
    std::fs::remove_dir_all(&data).unwrap();
    voters.nodes[old].must_start();
    voters.wait_voting(3);
    let again = voters.open(old, "app.db");
    eventually("it has all again", || {
        let count = again.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, u32>(0));
        (count == Ok(60)).then_some(())
    });
}

#[test]
fn a_voter_removed_while_it_was_down_waits_and_is_let_in_by_the_command_it_names() {
    let Some(mut voters) = Voters::three() else { return };
    let primary = voters.primary();
    let removed = voters.follower();
    let name = voters.nodes[removed].settings.name.clone();
    let db = app(&voters.nodes[primary].path("app.db"));
    voters.nodes[removed].terminate();
    voters.nodes[primary].must_client(&["members", "remove", &name]);
    write(&db, "INSERT OR IGNORE INTO t VALUES(2)");
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
    let again = voters.open(removed, "app.db");
    eventually("it has what came while it was none", || {
        let count = again.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, u32>(0));
        (count == Ok(2)).then_some(())
    });
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

#[test]
fn the_loss_of_the_quorum_is_seen_on_every_node_that_is_left() {
    let Some(mut voters) = Voters::three() else { return };
    let replica = voters.add_replica();
    let primary = voters.primary_among(&[0, 1, 2]);
    let quorum = |node: &Node| {
        let text = http::request(node.http, "GET", "/metrics", &[]).ok()?.text();
        let line = text.lines().find(|line| line.starts_with("skein_quorum "))?;
        Some(line.ends_with(" 1"))
    };
    eventually("all hear of a quorum", || {
        voters.nodes.iter().all(|node| quorum(node) == Some(true)).then_some(())
    });
    // The primary is left, and the replica, which follows any of them.
    let others: Vec<usize> = (0..3).filter(|which| *which != primary).collect();
    others.iter().for_each(|which| voters.nodes[*which].kill9());
    for which in [primary, replica] {
        let node = &voters.nodes[which];
        eventually("it says that there is no quorum", || (!quorum(node)?).then_some(()));
        eventually("the first line of the status says it", || {
            let output = node.client(&["status"]);
            String::from_utf8_lossy(&output.stdout).starts_with("NO QUORUM since ").then_some(())
        });
        let (status, text) = readiness(node).unwrap();
        assert!(status == 200 && text.contains("nothing can be written"), "{status} {text}");
        eventually("the log says it", || node.log().contains("no quorum: ").then_some(()));
    }
    others.iter().for_each(|which| voters.nodes[*which].must_start());
    for which in [primary, replica] {
        eventually("there is a quorum again", || (quorum(&voters.nodes[which])?).then_some(()));
    }
}

/// SQL that updates pages at random without end, as fast as SQLite runs it.
fn random_updates(seed: usize) -> String {
    let mut script =
        String::from("PRAGMA synchronous=OFF; PRAGMA wal_autocheckpoint=20; PRAGMA busy_timeout=2000;\n");
    for step in 0..200_000 {
        let id = (step * 7919 + seed * 104_729) % 400 + 1;
        script.push_str(&format!("UPDATE t SET v=randomblob(1500) WHERE id={id};\n"));
    }
    script
}

#[test]
fn pages_that_are_in_no_history_stay_in_no_file_whatever_was_copied_before_a_crash() {
    let Some(mut voters) = Voters::three() else { return };
    let first = voters.primary();
    eventually("the database is made", || {
        let connection = sql::try_open(&voters.nodes[first].path("a.db")).ok()?;
        connection
            .execute_batch(
                "PRAGMA journal_mode=WAL; CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, v);
                 WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n LIMIT 400)
                 INSERT OR REPLACE INTO t SELECT i, randomblob(1500) FROM n",
            )
            .ok()
    });
    for round in 0..4 {
        let killed = voters.primary();
        let script = voters.dir().join("updates.sql");
        std::fs::write(&script, random_updates(round)).unwrap();
        let before = voters.nodes[killed].pos("a.db");
        let mut writer = Command::new("sqlite3")
            .arg(voters.nodes[killed].path("a.db"))
            .stdin(std::fs::File::open(&script).unwrap())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        eventually("it has written", || (voters.nodes[killed].pos("a.db") != before).then_some(()));
        // The application goes on for a moment after the daemon's death, or dies first.
        if round % 2 == 1 {
            writer.kill().unwrap();
        }
        voters.nodes[killed].kill9();
        let others: Vec<usize> = (0..3).filter(|which| *which != killed).collect();
        let (next, _) =
            voters.first_write("a.db", "UPDATE t SET v='of the next primary' WHERE id % 10 = 0", &others);
        writer.kill().unwrap();
        writer.wait().unwrap();
        voters.nodes[killed].must_start();
        voters.wait_voting(3);
        voters.same_bytes("a.db");
        // Reads every page of every node.
        voters.nodes[next].must_client(&["db", "verify", "a.db"]);
        for node in &voters.nodes {
            let connection = sql::open(&node.path("a.db"));
            sql::check_integrity(&connection);
            let theirs = "SELECT count(*) FROM t WHERE v='of the next primary'";
            assert_eq!(sql::number(&connection, theirs), 40, "{}, round {round}", node.settings.name);
        }
    }
}

#[test]
fn what_a_crash_leaves_in_the_logs_of_a_replica_is_history_also_after_an_end_with_readers() {
    let Some(mut cluster) = Cluster::start(&Options::replicas(1)) else { return };
    let writer = app(&cluster.primary.path("app.db"));
    cluster.converge("app.db");
    let reader = sql::open(&cluster.replicas[0].path("app.db"));
    assert_eq!(sql::number(&reader, "SELECT count(*) FROM t"), 1);
    // In order, and an application still has the database open.
    cluster.replicas[0].terminate();
    drop(reader);
    cluster.replicas[0].must_start();
    let reader = sql::open(&cluster.replicas[0].path("app.db"));
    for row in 2..=20 {
        sql::run(&writer, &format!("INSERT INTO t VALUES({row})"));
    }
    cluster.converge("app.db");
    assert_eq!(sql::number(&reader, "SELECT count(*) FROM t"), 20);
    cluster.replicas[0].kill9();
    drop(reader);
    sql::run(&writer, "INSERT INTO t VALUES(21)");
    cluster.replicas[0].must_start();
    cluster.converge("app.db");
    let log = cluster.replicas[0].log();
    assert!(!log.contains("ERROR"), "{log}");
    let discarded = std::fs::read_dir(cluster.replicas[0].data().join("discarded"));
    assert_eq!(discarded.map_or(0, Iterator::count), 0);
}

/// A node killed with a commit in a WAL that began with unknown salts, which nobody has captured, behind commits that redo
/// brings again.
fn killed_before_a_capture() -> Option<Cluster> {
    let mut cluster = Cluster::start(&Options::replicas(1))?;
    let path = cluster.primary.path("app.db");
    let first = app(&path);
    sql::run(&first, "PRAGMA wal_autocheckpoint=0");
    // One that has never begun a log draws both salts anew where it begins one (`wal.c`, sqlite3WalFrames()).
    let second = sql::open(&path);
    sql::run(&second, "PRAGMA wal_autocheckpoint=0; PRAGMA synchronous=OFF; SELECT * FROM t");
    cluster.converge("app.db");
    sql::run(&first, "PRAGMA wal_checkpoint(TRUNCATE)");
    // Nobody captures any more.
    let pid = Pid::from_raw(i32::try_from(cluster.primary.pid()).expect("pids are small"));
    kill(pid, Signal::SIGSTOP).unwrap();
    sql::run(&second, "INSERT INTO t VALUES(2)");
    assert_eq!(sql::number(&second, "SELECT count(*) FROM t"), 2);
    cluster.primary.kill9();
    Some(cluster)
}

/// The node, which runs, has captured what was committed last.
fn has_captured(cluster: &Cluster) {
    let log = cluster.primary.log();
    assert!(log.contains("capturing transactions that a crash left in the WAL"), "{log}");
    assert_eq!(sql::number(&sql::open(&cluster.primary.path("app.db")), "SELECT count(*) FROM t"), 2);
    cluster.converge("app.db");
}

#[test]
fn what_was_committed_last_before_a_crash_is_history_also_in_a_log_that_began_with_unknown_salts() {
    let Some(mut cluster) = killed_before_a_capture() else { return };
    cluster.primary.must_start();
    has_captured(&cluster);
}

#[test]
fn what_was_committed_last_is_history_also_where_the_next_start_ends_between_redo_and_its_capture() {
    let Some(mut cluster) = killed_before_a_capture() else { return };
    for label in ["recover_journal_remove", "tail_capture"] {
        cluster.primary.settings.env = vec![("SKEIN_FAULT".into(), format!("{label}:1:kill"))];
        if cluster.primary.start().is_ok() {
            let ended = cluster.primary.wait_for_end(Duration::from_secs(20));
            assert!(ended.is_some(), "it passed {label}");
        }
        let data = cluster.primary.data().join("dbs/app.db");
        let set_aside = std::fs::read_dir(data).unwrap();
        let logs: Vec<_> = set_aside.map(|entry| entry.unwrap().file_name()).collect();
        assert!(logs.iter().any(|name| name.to_string_lossy().ends_with("-wal")), "{label}: {logs:?}");
    }
    cluster.primary.settings.env.clear();
    cluster.primary.must_start();
    has_captured(&cluster);
}
