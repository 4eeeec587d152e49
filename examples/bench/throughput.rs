//! Commits and rows per second, and how fast a new replica gets everything.

use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use crate::Bench;
use crate::harness::{Node, Settings, eventually, is_plain, sql};

const MODES: [(&str, &str); 3] = [("wal", "normal"), ("wal", "full"), ("delete", "full")];

/// A database with one table, in this mode.
pub fn prepare(path: &Path, journal: &str, synchronous: &str) -> Connection {
    let connection = sql::create(path, journal, 4096);
    sql::run(
        &connection,
        &format!("PRAGMA synchronous={synchronous}; CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)"),
    );
    connection
}

/// Autocommit INSERTs for a time; commits per second.
pub fn commits_per_second(connection: &Connection, limit: Duration) -> f64 {
    let mut insert = connection.prepare("INSERT INTO t(v) VALUES(?1)").expect("the table is there");
    let text = "x".repeat(100);
    let (start, mut count) = (Instant::now(), 0);
    while start.elapsed() < limit {
        for _ in 0..10 {
            insert.execute([&text]).expect("the primary accepts writes");
        }
        count += 10;
    }
    f64::from(count) / start.elapsed().as_secs_f64()
}

/// Autocommit INSERT.
pub fn insert(bench: &mut Bench) {
    let limit = Duration::from_millis(if bench.quick { 300 } else { 1500 });
    for (journal, synchronous) in MODES {
        let db = format!("insert-{journal}-{synchronous}.db");
        let plain = prepare(&bench.plain(&db), journal, synchronous);
        let mount = prepare(&bench.cluster.primary.path(&db), journal, synchronous);
        let (mut plain_rates, mut mount_rates) = (Vec::new(), Vec::new());
        for _ in 0..bench.rounds {
            plain_rates.push(commits_per_second(&plain, limit));
            mount_rates.push(commits_per_second(&mount, limit));
        }
        let name = format!("autocommit INSERT, {journal} {synchronous}");
        bench.report.compare(&name, "commits/s", &plain_rates, &mount_rates);
        bench.cluster.converge(&db);
    }
}

fn rows_per_second(connection: &mut Connection, rows: usize) -> f64 {
    let text = "x".repeat(100);
    let start = Instant::now();
    let transaction = connection.transaction().expect("nobody else writes");
    let mut insert = transaction.prepare("INSERT INTO t(v) VALUES(?1)").expect("the table is there");
    for _ in 0..rows {
        insert.execute([&text]).expect("the primary accepts writes");
    }
    drop(insert);
    transaction.commit().expect("the primary accepts writes");
    rows as f64 / start.elapsed().as_secs_f64()
}

/// Many rows in one transaction.
pub fn bulk(bench: &mut Bench) {
    let rows = bench.amount(100_000);
    for (journal, synchronous) in MODES {
        let db = format!("bulk-{journal}-{synchronous}.db");
        let mut plain = prepare(&bench.plain(&db), journal, synchronous);
        let mut mount = prepare(&bench.cluster.primary.path(&db), journal, synchronous);
        let (mut plain_rates, mut mount_rates) = (Vec::new(), Vec::new());
        for _ in 0..bench.rounds {
            plain_rates.push(rows_per_second(&mut plain, rows));
            mount_rates.push(rows_per_second(&mut mount, rows));
        }
        let name = format!("bulk INSERT of {rows} rows, {journal} {synchronous}");
        bench.report.compare(&name, "rows/s", &plain_rates, &mount_rates);
        bench.cluster.converge(&db);
    }
}

/// From an empty data directory to everything the primary has, against copying the file durably.
pub fn sync(bench: &mut Bench) {
    let megabytes = bench.amount(500);
    let mount = prepare(&bench.cluster.primary.path("sync.db"), "wal", "normal");
    for _ in 0..megabytes.div_ceil(10) {
        let sql =
            "INSERT INTO t(v) WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM n WHERE x<1000)
                   SELECT hex(randomblob(5000)) FROM n";
        sql::run(&mount, sql);
    }
    sql::run(&mount, "PRAGMA wal_checkpoint(PASSIVE)");
    drop(mount);
    let file = bench.cluster.dir().join("exported.db");
    std::fs::write(&file, bench.cluster.primary.export("sync.db").expect("the primary exports"))
        .expect("disk space");
    let size_mb = std::fs::metadata(&file).expect("just written").len() as f64 / 1e6;
    let (mut plain, mut skein) = (Vec::new(), Vec::new());
    for round in 0..3 {
        let (copy, start) = (bench.plain("copy.db"), Instant::now());
        std::fs::copy(&file, &copy).and_then(|_| std::fs::File::open(&copy)?.sync_all()).expect("disk space");
        plain.push(size_mb / start.elapsed().as_secs_f64());
        std::fs::remove_file(&copy).expect("just written");
        if is_plain() {
            skein.push(f64::NAN);
            continue;
        }
        let settings = Settings::replica(&format!("late{round}"), bench.cluster.primary.listen);
        let mut late = Node::new(bench.cluster.dir(), settings);
        let start = Instant::now();
        late.must_start();
        eventually("the late replica has the database", || {
            (late.pos("sync.db")? == bench.cluster.primary.pos("sync.db")?).then_some(())
        });
        skein.push(size_mb / start.elapsed().as_secs_f64());
        late.terminate();
    }
    bench.report.compare(
        &format!("initial sync of {size_mb:.0} MB (plain: cp and fsync)"),
        "MB/s",
        &plain,
        &skein,
    );
}
