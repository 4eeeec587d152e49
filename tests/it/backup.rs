//! Continuous backup to a directory, and restore from it: by Skein and by Litestream.

use std::path::{Path, PathBuf};
use std::process::Command;

use rusqlite::Connection;
use serde_json::Value;
use skein::types::Timestamp;

use crate::harness::{Node, Settings, Voters, eventually, needs_skein, skein, sql};

/// A voter that backs up to `url`.
fn backing_up(name: &str, url: &str) -> Settings {
    let mut settings = Settings::primary(name);
    settings.env.push(("SKEIN_BACKUP_URL".into(), url.into()));
    settings.env.push(("SKEIN_BACKUP_SYNC_INTERVAL".into(), "100ms".into()));
    settings
}

fn file_url(dir: &Path) -> String {
    format!("file://{}", dir.display())
}

/// The backup's status of a database, as the node tells it.
pub fn backup_of(node: &Node, db: &str) -> Option<Value> {
    let all = crate::harness::http::get_json(node.http, "/v1/backup").ok()?;
    all[0]["databases"].as_array()?.iter().find(|found| found["name"] == db).cloned()
}

/// Waits until the bucket claims what the node has now; returns that position.
pub fn wait_uploaded(node: &Node, db: &str) -> (String, String) {
    eventually("what was committed is in the log", || {
        node.client(&["wait", db]).status.success().then_some(())
    });
    let (txid, checksum) = node.pos(db).expect("the database is there");
    let expected = format!("{txid}/{checksum}");
    eventually("the bucket has everything", || {
        (backup_of(node, db)?["position"] == expected.as_str()).then_some(())
    });
    (txid, checksum)
}

/// `skein restore`: what it wrote, or its error.
fn restore(args: &[&str], output: &Path) -> Result<Vec<u8>, String> {
    let done = skein().arg("restore").args(args).arg("-o").arg(output).output().unwrap();
    if !done.status.success() {
        assert!(!output.exists(), "a failed restore leaves nothing");
        return Err(String::from_utf8_lossy(&done.stderr).trim().to_owned());
    }
    let bytes = std::fs::read(output).unwrap();
    std::fs::remove_file(output).unwrap();
    Ok(bytes)
}

fn fill(connection: &Connection, from: u32, count: u32) {
    for n in from..from + count {
        connection.execute("INSERT INTO t VALUES(?1, randomblob(3000))", [n]).unwrap();
    }
}

fn table(node: &Node, db: &str, journal: &str) -> Connection {
    let connection = sql::create(&node.path(db), journal, 4096);
    sql::run(&connection, "CREATE TABLE t(n INTEGER PRIMARY KEY, v)");
    connection
}

/// The files of a level of a database in a directory.
fn files(dir: &Path, db: &str, level: u32) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir.join(db).join("ltx").join(level.to_string()));
    let paths = entries.into_iter().flatten().map(|entry| entry.unwrap().path());
    let mut all: Vec<_> = paths.filter(|path| path.extension().is_some_and(|kind| kind == "ltx")).collect();
    all.sort();
    all
}

#[test]
fn what_the_bucket_claims_is_restored_byte_for_byte_by_transaction_by_time_and_latest() {
    if !needs_skein() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let url = file_url(&dir.path().join("bucket"));
    let mut node = Node::new(dir.path(), backing_up("n1", &url));
    node.must_start();
    let out = dir.path().join("out.db");
    let mut points = Vec::new();
    for (db, journal) in [("app.db", "wal"), ("tenants/7.db", "delete")] {
        if let Some(parent) = node.path(db).parent() {
            std::fs::create_dir_all(parent).unwrap();
        }
        let connection = table(&node, db, journal);
        for round in 0..3 {
            fill(&connection, round * 20, 20);
            let (txid, _) = wait_uploaded(&node, db);
            let at = backup_of(&node, db).unwrap()["time"].as_str().unwrap().to_owned();
            points.push((db, txid, at, node.export(db).unwrap()));
        }
    }
    for (db, txid, at, bytes) in &points {
        assert_eq!(restore(&[&url, db, "--txid", txid], &out).as_ref(), Ok(bytes), "{db} {txid}");
        assert_eq!(restore(&[&url, db, "--time", at], &out).as_ref(), Ok(bytes), "{db} {at}");
    }
    assert_eq!(restore(&[&url, "app.db"], &out).as_ref(), Ok(&points[2].3));
    for (args, part) in [
        (&["app.db", "--txid", "00000000ffffffff"][..], "is not in it"),
        (&["app.db", "--time", "2020-01-01T00:00:00Z"], "goes from transaction"),
        (&["app.db", "--time", "2999-01-01T00:00:00Z"], "in the future"),
        (&["none.db"], "there is no backup"),
        (&[], "app.db, tenants/7.db"),
    ] {
        let args: Vec<&str> = std::iter::once(url.as_str()).chain(args.iter().copied()).collect();
        let error = restore(&args, &out).unwrap_err();
        assert!(error.contains(part) && error.lines().count() == 1, "{args:?}: {error}");
    }
    std::fs::write(&out, "kept").unwrap();
    let refused = skein().args(["restore", &url, "app.db", "-o"]).arg(&out).output().unwrap();
    assert!(!refused.status.success() && std::fs::read(&out).unwrap() == b"kept");
    // Into the running cluster, as one transaction.
    let earlier = &points[0];
    node.must_client(&["restore", &url, "app.db", "--txid", &earlier.1, "--into", "earlier.db"]);
    let copy = sql::open(&node.path("earlier.db"));
    assert_eq!(sql::number(&copy, "SELECT count(*) FROM t"), 20);
    wait_uploaded(&node, "earlier.db");
    let verified = node.must_client(&["backup", "verify", &url]);
    assert!(verified.contains("equal to the cluster's at") && verified.lines().count() >= 2, "{verified}");
    let listed = node.must_client(&["backup", "list", &url]);
    assert!(listed.contains("tenants/7.db"), "{listed}");
    assert!(node.must_client(&["backup", "list", &url, "app.db"]).contains(&earlier.1));
    assert!(node.must_client(&["backup", "status"]).contains("uploading"));
}

#[test]
fn a_successor_goes_on_where_the_bucket_is_without_a_snapshot_and_without_a_gap() {
    if !needs_skein() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let bucket = dir.path().join("bucket");
    let url = file_url(&bucket);
    let Some(mut voters) = three_backing_up(&url) else { return };
    let primary = voters.primary();
    let mut connection = table(&voters.nodes[primary], "app.db", "wal");
    fill(&connection, 0, 20);
    wait_uploaded(&voters.nodes[primary], "app.db");
    let out = dir.path().join("out.db");
    let mut written = 20;
    for round in 0..3 {
        let primary = voters.primary();
        if round == 1 {
            // What was acknowledged and not uploaded yet is the successor's to upload.
            fill(&connection, written, 5);
            written += 5;
            drop(connection);
            voters.nodes[primary].kill9();
        } else {
            drop(connection);
            let to = (0..3).find(|which| *which != primary).unwrap();
            voters.hand_to(to);
        }
        let primary = voters.primary();
        connection = voters.open(primary, "app.db");
        fill(&connection, written, 20);
        written += 20;
        wait_uploaded(&voters.nodes[primary], "app.db");
        let restored = restore(&[&url, "app.db"], &out).unwrap();
        assert_eq!(Ok(restored), voters.nodes[primary].export("app.db"));
        assert_eq!(sql::number(&connection, "SELECT count(*) FROM t"), i64::from(written));
        assert_eq!(files(&bucket, "app.db", 9).len(), 1, "no new snapshot");
        if round == 1 {
            (0..3).filter(|which| *which != primary).for_each(|which| {
                if voters.nodes[which].pid_if_running().is_none() {
                    voters.nodes[which].must_start();
                }
            });
        }
    }
    // Every transaction from the first on is in a file of level 0: no gap anywhere.
    let ranges: Vec<(u64, u64)> = files(&bucket, "app.db", 0).iter().map(|path| range_of(path)).collect();
    assert!(ranges.windows(2).all(|pair| pair[1].0 <= pair[0].1 + 1), "{ranges:?}");
}

fn range_of(path: &Path) -> (u64, u64) {
    let name = path.file_stem().unwrap().to_str().unwrap();
    let (min, max) = name.split_once('-').unwrap();
    (u64::from_str_radix(min, 16).unwrap(), u64::from_str_radix(max, 16).unwrap())
}

fn three_backing_up(url: &str) -> Option<Voters> {
    if !needs_skein() {
        return None;
    }
    let dir = tempfile::Builder::new().prefix("skein-backup-").tempdir().unwrap();
    let mut nodes: Vec<Node> = Vec::new();
    for number in 1..=3 {
        let mut settings = backing_up(&format!("n{number}"), url);
        settings.bootstrap = nodes.is_empty();
        settings.join = nodes.iter().map(|node: &Node| node.listen).collect();
        let mut node = Node::new(dir.path(), settings);
        node.must_start();
        nodes.push(node);
    }
    let voters = Voters::of(nodes, dir);
    voters.wait_voting(3);
    Some(voters)
}

#[test]
fn a_second_cluster_on_the_same_path_is_refused_by_name_and_touches_nothing() {
    if !needs_skein() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let url = file_url(&dir.path().join("bucket"));
    let mut first = Node::new(dir.path(), backing_up("n1", &url));
    first.must_start();
    let connection = table(&first, "app.db", "wal");
    fill(&connection, 0, 5);
    wait_uploaded(&first, "app.db");
    let bytes = first.export("app.db");
    let mut second = Node::new(dir.path(), backing_up("other", &url));
    second.must_start();
    table(&second, "app.db", "wal");
    let warning = eventually("the second cluster is refused", || {
        let all = crate::harness::http::get_json(second.http, "/v1/backup").ok()?;
        all[0]["warning"].as_str().map(ToOwned::to_owned)
    });
    assert!(warning.contains("node n1") && warning.contains("choose another path"), "{warning}");
    let ready = crate::harness::http::request(second.http, "GET", "/readyz", &[]).unwrap();
    assert!(ready.status == 200 && ready.text().contains("warning: the backup to"), "{}", ready.text());
    let out = dir.path().join("out.db");
    assert_eq!(restore(&[&url, "app.db"], &out).as_ref(), bytes.as_ref());
}

#[test]
fn dropped_and_made_anew_renamed_and_imported_databases_keep_their_earlier_points() {
    if !needs_skein() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let url = file_url(&dir.path().join("bucket"));
    let mut node = Node::new(dir.path(), backing_up("n1", &url));
    node.must_start();
    let out = dir.path().join("out.db");
    let connection = table(&node, "app.db", "wal");
    fill(&connection, 0, 10);
    wait_uploaded(&node, "app.db");
    let first =
        (backup_of(&node, "app.db").unwrap()["time"].as_str().unwrap().to_owned(), node.export("app.db"));
    drop(connection);
    node.must_client(&["db", "drop", "app.db"]);
    eventually("the bucket knows that it was dropped", || {
        backup_of(&node, "app.db")?["ended"].as_str().map(drop)
    });
    assert_eq!(restore(&[&url, "app.db"], &out).as_ref(), first.1.as_ref(), "its last state");
    let connection = table(&node, "app.db", "wal");
    fill(&connection, 100, 3);
    wait_uploaded(&node, "app.db");
    let second = node.export("app.db");
    assert_eq!(restore(&[&url, "app.db"], &out).as_ref(), second.as_ref());
    assert_eq!(restore(&[&url, "app.db", "--time", &first.0], &out).as_ref(), first.1.as_ref());
    let offset = backup_of(&node, "app.db").unwrap()["txid_offset"].as_u64().unwrap();
    assert!(offset > 0, "numbers of files never come back");
    drop(connection);
    // Another page size, and another name.
    let other = dir.path().join("other.db");
    let source = sql::create(&other, "delete", 1024);
    sql::run(&source, "CREATE TABLE t(n INTEGER PRIMARY KEY, v); INSERT INTO t VALUES(7, 'x')");
    drop(source);
    node.must_client(&["db", "import", other.to_str().unwrap(), "app.db"]);
    wait_uploaded(&node, "app.db");
    assert_eq!(restore(&[&url, "app.db"], &out), node.export("app.db"));
    std::fs::rename(node.path("app.db"), node.path("renamed.db")).unwrap();
    wait_uploaded(&node, "renamed.db");
    assert_eq!(restore(&[&url, "renamed.db"], &out), node.export("renamed.db"));
    assert_eq!(restore(&[&url, "app.db", "--time", &first.0], &out).as_ref(), first.1.as_ref());
}

#[test]
fn a_damaged_or_missing_file_is_named_or_planned_around_and_nothing_half_is_left() {
    if !needs_skein() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let bucket = dir.path().join("bucket");
    let url = file_url(&bucket);
    let mut node = Node::new(dir.path(), backing_up("n1", &url));
    node.must_start();
    let connection = table(&node, "app.db", "wal");
    fill(&connection, 0, 5);
    wait_uploaded(&node, "app.db");
    fill(&connection, 5, 5);
    wait_uploaded(&node, "app.db");
    node.terminate();
    let out = dir.path().join("out.db");
    let last = files(&bucket, "app.db", 0).pop().unwrap();
    let whole = std::fs::read(&last).unwrap();
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 1;
    std::fs::write(&last, &damaged).unwrap();
    let error = restore(&[&url, "app.db"], &out).unwrap_err();
    assert!(error.contains("object app.db/ltx/0/") && error.lines().count() == 1, "{error}");
    std::fs::write(&last, &whole[..whole.len() - 1]).unwrap();
    assert!(restore(&[&url, "app.db"], &out).is_err());
    // The point before it is still there.
    std::fs::remove_file(&last).unwrap();
    assert!(restore(&[&url, "app.db"], &out).is_ok());
    let left: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with(".skein-restore"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_bucket_that_is_away_or_full_is_caught_up_with_when_it_is_back() {
    if !needs_skein() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let bucket = dir.path().join("bucket");
    let url = file_url(&bucket);
    let mut settings = backing_up("n1", &url);
    settings.env.push(("SKEIN_BACKUP_WARN_AFTER".into(), "1s".into()));
    let mut node = Node::new(dir.path(), settings);
    node.must_start();
    let connection = table(&node, "app.db", "wal");
    fill(&connection, 0, 5);
    wait_uploaded(&node, "app.db");
    let away = dir.path().join("away");
    std::fs::rename(&bucket, &away).unwrap();
    // Nothing can be made there.
    std::fs::write(&bucket, "a file").unwrap();
    fill(&connection, 5, 5);
    let warning = eventually("the backup warns", || {
        let all = crate::harness::http::get_json(node.http, "/v1/backup").ok()?;
        all[0]["warning"].as_str().map(ToOwned::to_owned)
    });
    assert!(warning.contains("backup"), "{warning}");
    fill(&connection, 10, 5);
    std::fs::remove_file(&bucket).unwrap();
    std::fs::rename(&away, &bucket).unwrap();
    wait_uploaded(&node, "app.db");
    let out = dir.path().join("out.db");
    assert_eq!(restore(&[&url, "app.db"], &out), node.export("app.db"));
    assert_eq!(files(&bucket, "app.db", 9).len(), 1, "the log had what was missing");
}

#[test]
fn under_load_and_kills_every_acknowledged_commit_that_the_bucket_claims_is_restored() {
    if !needs_skein() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let url = file_url(&dir.path().join("bucket"));
    let Some(mut voters) = three_backing_up(&url) else { return };
    let primary = voters.primary();
    drop(table(&voters.nodes[primary], "app.db", "wal"));
    let out = dir.path().join("out.db");
    let mut acknowledged = 0;
    for round in 0..4 {
        let primary = voters.primary();
        let connection = voters.open(primary, "app.db");
        for _ in 0..60 {
            if connection.execute("INSERT INTO t VALUES(?1, randomblob(500))", [acknowledged + 1]).is_ok() {
                acknowledged += 1;
            }
        }
        // In the middle of an upload, as likely as not.
        let claimed = backup_of(&voters.nodes[primary], "app.db");
        drop(connection);
        if round % 2 == 0 {
            voters.nodes[primary].kill9();
        } else {
            voters.nodes[primary].terminate();
        }
        let claimed = claimed.and_then(|status| status["position"].as_str().map(ToOwned::to_owned));
        if let Some((txid, _)) = claimed.as_deref().and_then(|pos| pos.split_once('/')) {
            restore(&[&url, "app.db", "--txid", txid], &out).unwrap();
        }
        voters.nodes[primary].must_start();
    }
    let primary = eventually("the bucket has everything", || {
        let primary = voters.primary();
        let (txid, checksum) = voters.nodes[primary].pos("app.db")?;
        let uploaded = backup_of(&voters.nodes[primary], "app.db")?;
        (uploaded["position"] == format!("{txid}/{checksum}").as_str()).then_some(primary)
    });
    let connection = voters.open(primary, "app.db");
    assert!(sql::number(&connection, "SELECT count(*) FROM t") >= acknowledged);
    assert_eq!(restore(&[&url, "app.db"], &out), voters.nodes[primary].export("app.db"));
}

#[test]
fn a_cluster_is_founded_from_a_bucket_also_when_the_first_start_is_interrupted() {
    if !needs_skein() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let url = file_url(&dir.path().join("bucket"));
    let mut lost = Node::new(dir.path(), backing_up("n1", &url));
    lost.must_start();
    std::fs::create_dir_all(lost.path("tenants")).unwrap();
    let mut dumps = Vec::new();
    for (db, journal) in [("app.db", "wal"), ("tenants/7.db", "delete"), ("gone.db", "wal")] {
        let connection = table(&lost, db, journal);
        fill(&connection, 0, 10);
        wait_uploaded(&lost, db);
        dumps.push((db, sql::dump(&connection)));
    }
    lost.must_client(&["db", "drop", "gone.db"]);
    eventually("the bucket knows that it was dropped", || {
        backup_of(&lost, "gone.db")?["ended"].as_str().map(drop)
    });
    lost.kill9();
    let mut settings = Settings::primary("n2");
    settings.env.push(("SKEIN_RESTORE_FROM".into(), format!("{url}-none")));
    let mut node = Node::new(dir.path(), settings);
    let error = node.start().unwrap_err();
    assert!(error.contains("there is no backup at"), "{error}");
    // Without the URL it would be ready without its databases.
    node.settings.env.clear();
    let error = node.start().unwrap_err();
    assert!(error.contains("give --restore-from once more"), "{error}");
    node.settings.env.push(("SKEIN_RESTORE_FROM".into(), url));
    node.must_start();
    for (db, dump) in &dumps[..2] {
        assert_eq!(sql::dump(&sql::open(&node.path(db))), *dump, "{db}");
    }
    assert!(!node.path("gone.db").exists());
    sql::run(&sql::open(&node.path("app.db")), "DELETE FROM t");
    // Once only.
    node.restart();
    assert_eq!(sql::number(&sql::open(&node.path("app.db")), "SELECT count(*) FROM t"), 0);
}

/// A program of other people, in the directory that `SKEIN_BACKUP_TOOLS` names.
pub fn tool(name: &str) -> Option<PathBuf> {
    let found = std::env::var_os("SKEIN_BACKUP_TOOLS").map(|dir| PathBuf::from(dir).join(name));
    let found = found.filter(|path| path.exists());
    if found.is_none() {
        crate::harness::skip(&format!(
            "SKEIN_BACKUP_TOOLS has no {name}; scripts/backup-tools fetches it from PyPI"
        ));
    }
    found
}

#[test]
fn litestream_restores_what_skein_has_written() {
    let Some(litestream) = tool("litestream") else { return };
    if !needs_skein() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let bucket = dir.path().join("bucket");
    let mut node = Node::new(dir.path(), backing_up("n1", &file_url(&bucket)));
    node.must_start();
    let connection = table(&node, "app.db", "wal");
    sql::run(&connection, "PRAGMA auto_vacuum=FULL; VACUUM");
    let mut points = Vec::new();
    for round in 0..4 {
        fill(&connection, round * 10, 10);
        if round == 2 {
            sql::run(&connection, "DELETE FROM t WHERE n < 15");
        }
        let (txid, _) = wait_uploaded(&node, "app.db");
        let time = backup_of(&node, "app.db").unwrap()["time"].as_str().unwrap().parse().unwrap();
        points.push((txid, node.export("app.db").unwrap(), time));
    }
    let out = dir.path().join("out.db");
    let url = file_url(&bucket.join("app.db"));
    let by_litestream = |args: &[&str]| {
        let mut command = Command::new(&litestream);
        command.arg("restore").args(args).arg("-integrity-check").arg("full").arg("-o").arg(&out).arg(&url);
        let done = command.output().unwrap();
        assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
        let bytes = std::fs::read(&out).unwrap();
        std::fs::remove_file(&out).unwrap();
        bytes
    };
    assert!(by_litestream(&[]) == points.last().unwrap().1, "latest");
    for (txid, bytes, _) in &points {
        assert!(by_litestream(&["-txid", txid]) == *bytes, "{txid}");
    }
    // It takes what is strictly before a time, and no time behind the last file's.
    for (_, bytes, time) in &points[..3] {
        let time = Timestamp::from_ms(Timestamp::ms(*time) + 1).to_string();
        assert!(by_litestream(&["-timestamp", &time]) == *bytes, "{time}");
    }
}
