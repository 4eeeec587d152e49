//! Damaged files and a full disk: the error says where, nothing acknowledged is lost, no panic.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::harness::sql;
use crate::harness::{
    App, Cluster, Node, Options, Settings, SmallDisk, is_plain, needs_skein, skein, within,
};

/// Regular files below `dir`, largest first.
fn files(dir: &Path) -> Vec<PathBuf> {
    let (mut found, mut open) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() { open.push(path) } else { found.push(path) }
        }
    }
    found.sort_by_key(|path| std::cmp::Reverse(fs::metadata(path).map_or(0, |data| data.len())));
    found
}

/// Turns some bytes in the written part of a file around.
fn damage(path: &Path) {
    let content = fs::read(path).unwrap();
    let written = content.iter().rposition(|byte| *byte != 0).unwrap_or(0);
    let file = fs::File::options().write(true).open(path).unwrap();
    let at = written / 2;
    let end = (at + 16).min(content.len());
    let turned: Vec<_> = content[at..end].iter().map(|byte| !byte).collect();
    file.write_all_at(&turned, at as u64).unwrap();
}

/// A node with one database of 40 transactions and one of 3 MiB, ended in order.
fn prepared(dir: &Path) -> Node {
    let mut node = Node::new(dir, Settings::primary("n1"));
    node.must_start();
    let mut app = App::transfer(&node.path("app.db"), &["--count", "46"]);
    assert!(app.end().0.success());
    let large = sql::create(&node.path("large.db"), "delete", 4096);
    sql::run(&large, "CREATE TABLE t(v); INSERT INTO t VALUES(randomblob(3000000))");
    drop(large);
    node.terminate();
    node
}

/// Starts over damage: either a refusal that names what is damaged, or service without a wrong answer.
fn start_over_damage(node: &mut Node, what: &Path) {
    let before = node.log().len();
    match node.start() {
        Err(said) => assert!(
            said.contains(what.file_name().unwrap().to_str().unwrap())
                || said.contains("damaged")
                || said.contains("corrupt")
                || said.contains("checksum"),
            "{}: {said}",
            what.display()
        ),
        Ok(()) => {
            if let Ok(connection) = sql::try_open(&node.path("app.db")) {
                let sums =
                    sql::rows(&connection, "SELECT sum(balance), (SELECT count(*) FROM ledger) FROM account");
                if let Ok(sums) = sums {
                    let expected: Vec<rusqlite::types::Value> = vec![20_000.into(), 40.into()];
                    assert_eq!(sums, [expected], "{}: a wrong answer", what.display());
                }
            }
            node.kill9();
        }
    }
    assert!(!node.log()[before..].contains("panicked"), "{}: {}", what.display(), node.log());
}

#[test]
fn a_damaged_file_of_the_data_directory_is_noticed() {
    if !needs_skein() {
        return;
    }
    for part in ["raft", "blobs", "dbs"] {
        let dir = tempfile::tempdir().unwrap();
        let mut node = prepared(dir.path());
        let data = node.data();
        for path in
            files(&data.join(part)).into_iter().filter(|path| fs::metadata(path).unwrap().len() > 16).take(4)
        {
            let good = fs::read(&path).unwrap();
            damage(&path);
            start_over_damage(&mut node, &path);
            if path.exists() {
                fs::write(&path, &good).unwrap();
            }
        }
    }
}

#[test]
fn a_damaged_database_of_a_replica_heals_from_the_primary() {
    if !needs_skein() {
        return;
    }
    let Some(mut cluster) = Cluster::primary_and_replicas(1) else { return };
    assert!(
        App::transfer(&cluster.primary.path("app.db"), &["--count", "40", "--note", "900"]).end().0.success()
    );
    cluster.same_bytes("app.db");
    cluster.replicas[0].terminate();
    let file = cluster.replicas[0].data().join("dbs/app.db/database");
    damage(&file);
    cluster.replicas[0].must_start();
    assert!(
        App::transfer(&cluster.primary.path("app.db"), &["--count", "10", "--id", "b"]).end().0.success()
    );
    cluster.same_bytes("app.db");
}

#[test]
fn ltx_verify_says_where_a_file_is_damaged() {
    if is_plain() {
        return;
    }
    let Some(good) = files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data"))
        .into_iter()
        .find(|path| path.extension().is_some_and(|extension| extension == "ltx"))
    else {
        crate::harness::skip("no LTX file in tests/data");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("copy.ltx");
    let verify = || skein().args(["ltx", "verify", copy.to_str().unwrap()]).output().unwrap();
    let content = fs::read(&good).unwrap();
    fs::write(&copy, &content).unwrap();
    assert!(verify().status.success(), "{}", String::from_utf8_lossy(&verify().stderr));
    let cuts = [0, 4, 99, 110, content.len() / 2, content.len() - 1].map(|length| content[..length].to_vec());
    let flips = [0, 12, 50, 101, content.len() / 2, content.len() - 3].map(|at| {
        let mut damaged = content.clone();
        damaged[at] ^= 0x55;
        damaged
    });
    for damaged in cuts.iter().chain(&flips) {
        fs::write(&copy, damaged).unwrap();
        let output = verify();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("copy.ltx") && !said.contains("panicked"), "{said}");
    }
}

#[test]
fn a_full_disk_fails_commits_and_loses_none() {
    if !needs_skein() {
        return;
    }
    if !nix::unistd::geteuid().is_root() {
        crate::harness::skip("a small tmpfs needs root");
        return;
    }
    for options in [Options::replicas(0), Options::replicas(0).without_passthrough()] {
        for journal in ["wal", "delete"] {
            let dir = tempfile::tempdir().unwrap();
            // Room for the log's first segments and a little more.
            let mib = crate::harness::number("SKEIN_SMALL_DISK_MIB", 200);
            let disk = SmallDisk::mount(&dir.path().join("small"), mib);
            let small = disk.path();
            fs::create_dir(small.join("data")).unwrap();
            let mut settings = Settings::primary("n1");
            settings.data = Some(small.join("data"));
            settings.passthrough = options.passthrough;
            let mut node = Node::new(dir.path(), settings);
            node.must_start();
            let mut app = App::transfer(
                &node.path("app.db"),
                &["--journal", journal, "--note", "20000", "--seconds", "60"],
            );
            let (status, said, errors) = app.end();
            assert!(!status.success(), "the disk did not fill: {:?}", said.last());
            // Before the disk is full writers of a WAL are made to wait, and give up.
            let refusals = ["full", "I/O", "readonly", "locked"];
            assert!(refusals.iter().any(|words| errors.contains(words)), "{errors}");
            let acknowledged = said.iter().filter(|line| line.starts_with("commit")).count();
            node.kill9();
            // Room again: more of it, as an administrator would give.
            let larger = "size=900m";
            nix::mount::mount(
                None::<&str>,
                small,
                None::<&str>,
                nix::mount::MsFlags::MS_REMOUNT,
                Some(larger),
            )
            .unwrap();
            node.must_start();
            let connection = sql::open(&node.path("app.db"));
            sql::check_integrity(&connection);
            let kept = sql::number(&connection, "SELECT count(*) FROM ledger");
            assert!(kept >= i64::try_from(acknowledged).unwrap(), "{kept} kept, {acknowledged} acknowledged");
            assert_eq!(sql::number(&connection, "SELECT sum(balance) FROM account"), 20_000);
            drop(connection);
            assert!(
                App::transfer(&node.path("app.db"), &["--id", "z", "--journal", journal, "--count", "5"])
                    .end()
                    .0
                    .success()
            );
            drop(node);
            drop(disk);
        }
    }
}

#[test]
fn a_voter_names_a_damaged_page_but_not_one_that_its_log_repairs() {
    if !needs_skein() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut node = prepared(dir.path());
    node.must_start();
    // Compared before the other one, by its name.
    let redone = sql::create(&node.path("again.db"), "delete", 4096);
    sql::run(&redone, "CREATE TABLE t(v); INSERT INTO t VALUES(1)");
    drop(redone);
    node.kill9();
    let dbs = node.data().join("dbs");
    // As after a power cut: the first page changes with every transaction, and the log has it.
    let torn = fs::File::options().write(true).open(dbs.join("again.db/database")).unwrap();
    torn.write_all_at(&[0; 2048], 2048).unwrap();
    damage(&dbs.join("large.db/database"));
    let before = node.log().len();
    node.must_start();
    let named = |db: &str| {
        node.log()[before..].lines().any(|line| line.contains("not what was written") && line.contains(db))
    };
    within(Duration::from_secs(60), || named("large.db").then_some(())).expect("the damage is named");
    assert!(!named("again.db"), "{}", node.log());
    sql::check_integrity(&sql::open(&node.path("again.db")));
}
