//! What bounds writers: the log that falls behind, and the disk.

use std::io::Write;
use std::time::Duration;

use crate::harness::{Node, Settings, SmallDisk, eventually, http, needs_skein, skip, sql};

fn metric(node: &Node, name: &str) -> f64 {
    let text = http::request(node.http, "GET", "/metrics", &[]).unwrap().text();
    let line = text.lines().find(|line| line.split(' ').next() == Some(name));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or_else(|| panic!("{name}\n{text}"))
}

#[test]
fn writers_wait_while_the_log_lacks_what_they_committed_and_none_fails() {
    if !needs_skein() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut settings = Settings::primary("n1");
    settings.env = vec![("SKEIN_LIMITS_UNCOMMITTED".into(), "16KiB".into())];
    let mut node = Node::new(dir.path(), settings);
    node.must_start();
    let db = sql::open(&node.path("app.db"));
    db.busy_timeout(Duration::from_secs(30)).unwrap();
    db.execute_batch("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; CREATE TABLE t(v)").unwrap();
    // Faster than anybody looks: the bound is reached whatever the machine does.
    let rows = 3000;
    for row in 0..rows {
        db.execute("INSERT INTO t VALUES(?1)", [row]).unwrap();
    }
    eventually("writers waited", || (metric(&node, "skein_backpressure_waits_total") >= 1.0).then_some(()));
    assert!(node.log().contains("writers are made to wait"), "{}", node.log());
    // And then no more: one line, not one for each wait.
    assert!(node.log().matches("writers are made to wait").count() <= 3);
    let count: i64 = db.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap();
    assert_eq!(count, rows);
    drop(db);
    node.restart();
    let db = sql::open(&node.path("app.db"));
    let count: i64 = db.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap();
    assert_eq!(count, rows);
}

#[test]
fn commits_are_refused_before_the_disk_is_full_and_go_on_when_it_has_space() {
    if !needs_skein() {
        return;
    }
    if !nix::unistd::geteuid().is_root() {
        return skip("mounting a small disk needs root");
    }
    let dir = tempfile::tempdir().unwrap();
    let disk = SmallDisk::mount(&dir.path().join("small"), 200);
    for (mode, synchronous) in [("wal", "full"), ("wal", "normal"), ("delete", "full")] {
        let mut settings = Settings::primary(&format!("{mode}-{synchronous}"));
        settings.data = Some(disk.path().join(&settings.name));
        let mut node = Node::new(dir.path(), settings);
        node.must_start();
        let db = sql::open(&node.path("app.db"));
        db.busy_timeout(Duration::from_millis(50)).unwrap();
        db.execute_batch(&format!(
            "PRAGMA journal_mode={mode}; PRAGMA synchronous={synchronous}; CREATE TABLE t(v); INSERT INTO t VALUES(1)"
        ))
        .unwrap();
        // The log prepares its next file meanwhile.
        let ballast = disk.path().join("ballast");
        eventually("the disk is nearly full", || {
            let free = nix::sys::statvfs::statvfs(disk.path()).unwrap();
            let free = usize::try_from(free.blocks_available() * free.fragment_size()).unwrap();
            let mut file = std::fs::File::options().create(true).append(true).open(&ballast).unwrap();
            let spare = 6 << 20;
            file.write_all(&vec![7; free.saturating_sub(spare)]).unwrap();
            node.log().contains("the disk is nearly full").then_some(())
        });
        let insert = || db.execute_batch("INSERT INTO t VALUES(2)");
        eventually("a commit is refused", || insert().is_err().then_some(()));
        let count: i64 = db.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap();
        assert!(count >= 1, "reading goes on");
        std::fs::remove_file(&ballast).unwrap();
        eventually("commits go on", || insert().ok());
        let refused =
            metric(&node, "skein_disk_refusals_total") + metric(&node, "skein_backpressure_waits_total");
        assert!(refused >= 1.0, "{mode} {synchronous}");
        assert!(metric(&node, "skein_disk_free_bytes") > f64::from(10 << 20));
        let check: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(check, "ok");
        drop(db);
        node.terminate();
        std::fs::remove_dir_all(node.data()).unwrap();
    }
}
