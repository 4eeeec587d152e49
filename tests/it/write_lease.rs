//! The write lease of `DB-lock`, taken as programs written for LiteFS take it.

use std::fs::{File, OpenOptions};
use std::path::Path;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rusqlite::Connection;

use crate::harness::{App, Cluster, Node, PATIENCE, Voters, eventually, skein, sql, within};

/// `litefs.WithHalt`'s first half: opens `DB-lock`, and takes the HALT lock by `F_OFD_SETLKW`.
fn halt(database: &Path) -> std::io::Result<File> {
    let mut name = database.as_os_str().to_owned();
    name.push("-lock");
    let file = OpenOptions::new().read(true).write(true).open(name)?;
    lock(&file, libc::F_WRLCK)?;
    Ok(file)
}

/// `Halt` and `Unhalt` of litefs-go.
fn lock(file: &File, kind: i32) -> std::io::Result<()> {
    let lock = libc::flock { l_type: kind as i16, l_whence: 0, l_start: 72, l_len: 1, l_pid: 0 };
    fcntl(file, FcntlArg::F_OFD_SETLKW(&lock))?;
    Ok(())
}

fn voters(mode: &str) -> Option<Voters> {
    let voters = Voters::three()?;
    let db = sql::create(&voters.nodes[voters.primary()].path("app.db"), mode, 4096);
    sql::run(&db, "CREATE TABLE t(v)");
    drop(db);
    voters.same_bytes("app.db");
    Some(voters)
}

fn insert(db: &Connection) {
    db.busy_timeout(PATIENCE).unwrap();
    sql::run(db, "INSERT INTO t SELECT count(*) FROM t");
}

fn rows(node: &Node) -> i64 {
    sql::open(&node.path("app.db")).query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap()
}

fn handoff(node: &Node, to: &str) -> Result<(), String> {
    let output = node.client(&["handoff", to]);
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

#[test]
fn an_application_writes_on_any_voter_and_keeps_the_primary_until_it_gives_the_lease_back() {
    for mode in ["wal", "delete"] {
        let Some(voters) = voters(mode) else { return };
        let (before, here) = (voters.primary(), voters.follower());
        let node = &voters.nodes[here];
        // It had the database open before, as applications have.
        let db = voters.open(here, "app.db");
        for round in 1..=3 {
            let lease = halt(&node.path("app.db")).unwrap();
            insert(&db);
            assert_eq!(rows(node), round, "{mode}");
            assert_eq!(node.status().unwrap()["write_leases"], serde_json::json!(["app.db"]));
            let refused = handoff(node, &voters.nodes[before].settings.name).unwrap_err();
            assert!(refused.contains("holds the write lease of app.db"), "{refused}");
            lock(&lease, libc::F_UNLCK).unwrap();
            drop(lease);
            // The kernel tells of the last close a moment after it has returned.
            eventually("the lease is given back", || {
                node.status().unwrap().get("write_leases").is_none().then_some(())
            });
            handoff(node, &voters.nodes[before].settings.name).unwrap();
        }
        drop(db);
        voters.same_bytes("app.db");
    }
}

#[test]
fn applications_on_two_voters_take_turns_and_lose_nothing() {
    let Some(voters) = voters("wal") else { return };
    const ROUNDS: i64 = 5;
    std::thread::scope(|scope| {
        for node in &voters.nodes[..2] {
            scope.spawn(move || {
                for _ in 0..ROUNDS {
                    // Who is refused for as long as the other one is quicker asks again.
                    let lease = within(PATIENCE, || halt(&node.path("app.db")).ok()).expect("its turn comes");
                    insert(&sql::open(&node.path("app.db")));
                    drop(lease);
                }
            });
        }
    });
    voters.same_bytes("app.db");
    assert_eq!(rows(&voters.nodes[2]), 2 * ROUNDS);
}

#[test]
fn a_holder_that_dies_gives_the_lease_back_and_so_does_a_dead_node() {
    let Some(mut voters) = voters("wal") else { return };
    let (before, here) = (voters.primary(), voters.follower());
    let script = "sqlite3 \"$0\" '.timeout 20000' 'INSERT INTO t VALUES(1)' && echo wrote; exec sleep 1000";
    let database = voters.nodes[here].path("app.db");
    let url = format!("http://{}", voters.nodes[here].http);
    let hold = |words: &[&str]| {
        let mut command = skein();
        command.env("SKEIN_URL", &url).args(words).args(["--", "sh", "-c", script]).arg(&database);
        let mut app = App::spawn(&mut command);
        assert!(app.wait_for("wrote", 1, PATIENCE), "{:?}", app.lines());
        app
    };
    let mut app = hold(&["lease", database.to_str().unwrap()]);
    assert_eq!(voters.primary(), here);
    app.kill9();
    // Long before the time of the lease is over, which would let it move too.
    let name = voters.nodes[before].settings.name.clone();
    eventually("the lease is given back", || handoff(&voters.nodes[before], &name).ok());
    // The node itself: what the holder was told is there, and the others go on.
    // By its name on the mount, too.
    let mut app = hold(&["run", "--with-lease", "app.db"]);
    voters.nodes[here].kill9();
    app.kill9();
    let others: Vec<usize> = (0..3).filter(|which| *which != here).collect();
    let next = voters.primary_among(&others);
    let lease = halt(&voters.nodes[next].path("app.db")).unwrap();
    insert(&voters.open(next, "app.db"));
    drop(lease);
    assert_eq!(rows(&voters.nodes[next]), 3);
}

#[test]
fn a_lease_whose_time_is_over_is_taken_by_whoever_asks() {
    let Some(cluster) = Cluster::primary_and_replicas(0) else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut primary = cluster.primary;
    primary.terminate();
    primary.settings.env.push(("SKEIN_LIMITS_WRITE_LEASE".into(), "1ms".into()));
    primary.must_start();
    let mut nodes = vec![primary];
    for number in 2..=3 {
        let mut settings = crate::harness::Settings::primary(&format!("n{number}"));
        (settings.bootstrap, settings.join) = (false, vec![nodes[0].listen]);
        let mut node = Node::new(dir.path(), settings);
        node.must_start();
        nodes.push(node);
    }
    let voters = Voters::of(nodes, dir);
    voters.wait_voting(3);
    sql::run(&sql::create(&voters.nodes[0].path("app.db"), "wal", 4096), "CREATE TABLE t(v)");
    voters.same_bytes("app.db");
    let forgotten = halt(&voters.nodes[0].path("app.db")).unwrap();
    let lease = within(PATIENCE, || halt(&voters.nodes[1].path("app.db")).ok()).expect("it is taken");
    insert(&voters.open(1, "app.db"));
    drop((lease, forgotten));
}

#[test]
fn a_replica_refuses_the_lease_and_the_file_is_no_database() {
    let Some(cluster) = Cluster::primary_and_replicas(1) else { return };
    let db = sql::create(&cluster.primary.path("app.db"), "wal", 4096);
    sql::run(&db, "CREATE TABLE t(v)");
    cluster.converge("app.db");
    let replica = &cluster.replicas[0];
    assert_eq!(halt(&replica.path("app.db")).unwrap_err().raw_os_error(), Some(libc::EROFS));
    assert!(replica.log().contains("a replica cannot take a write lease"), "{}", replica.log());
    assert_eq!(std::fs::read(replica.path("app.db-lock")).unwrap(), b"");
    // The primary itself: nothing moves.
    drop(halt(&cluster.primary.path("app.db")).unwrap());
    let lock = |node: &Node, name: &str| {
        skein().arg("lease").arg(node.path(name)).args(["--", "true"]).output().unwrap()
    };
    assert_eq!(lock(replica, "app.db").status.code(), Some(4));
    assert_eq!(lock(&cluster.primary, "app.db").status.code(), Some(0));
    let missing = lock(&cluster.primary, "other.db");
    assert_eq!(missing.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("other.db is no database on the mount"));
    // Listed nowhere, and nothing else has such a name.
    let listed = std::fs::read_dir(cluster.primary.mount()).unwrap().flatten();
    assert!(listed.into_iter().all(|entry| !entry.file_name().to_string_lossy().ends_with("-lock")));
    assert!(File::create(cluster.primary.path("new-lock")).is_err());
    assert!(std::fs::remove_file(cluster.primary.path("app.db-lock")).is_err());
}
