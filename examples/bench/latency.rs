//! How long a read takes, how far a replica is behind, and what a reader held open changes.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use crate::Bench;
use crate::harness::{eventually, sql};
use crate::report::percentile;
use crate::throughput::{commits_per_second, prepare};

const ROWS: i64 = 100_000;

fn fill(connection: &Connection, rows: i64) {
    let sql = format!(
        "INSERT INTO t(v) WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM n WHERE x<{rows})
         SELECT hex(randomblob(50)) FROM n"
    );
    sql::run(connection, &sql);
}

/// Point SELECTs of random rows, each a transaction of its own; microseconds each.
fn select_us(connection: &Connection, count: usize) -> f64 {
    let mut select = connection.prepare("SELECT length(v) FROM t WHERE id = ?1").expect("the table is there");
    let (mut state, start) = (88_172_645_463_325_252_u64, Instant::now());
    for _ in 0..count {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let id = 1 + i64::try_from(state >> 33).expect("31 bits") % ROWS;
        let length: i64 = select.query_row([id], |row| row.get(0)).expect("the row is there");
        assert_eq!(length, 100);
    }
    start.elapsed().as_secs_f64() * 1e6 / count as f64
}

/// Opens a replica's database once the first rows are there.
fn open_replica(path: &Path, rows: i64) -> Connection {
    eventually("the replica has the rows", || {
        let connection = path.exists().then(|| sql::try_open(path).ok())??;
        let count: i64 = connection.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).ok()?;
        (count >= rows).then_some(connection)
    })
}

/// Point SELECT on the primary and on the replica.
pub fn select(bench: &mut Bench) {
    let count = bench.amount(200_000);
    for journal in ["wal", "delete"] {
        let db = format!("select-{journal}.db");
        let plain = prepare(&bench.plain(&db), journal, "full");
        let primary = prepare(&bench.cluster.primary.path(&db), journal, "full");
        fill(&plain, ROWS);
        fill(&primary, ROWS);
        bench.cluster.converge(&db);
        let replica = open_replica(&bench.cluster.replicas[0].path(&db), ROWS);
        let mut times = [Vec::new(), Vec::new(), Vec::new()];
        for round in 0..=bench.rounds {
            for (series, connection) in times.iter_mut().zip([&plain, &primary, &replica]) {
                let time = select_us(connection, count);
                // The first round fills the caches.
                if round > 0 {
                    series.push(time);
                }
            }
        }
        bench.report.compare(&format!("point SELECT on the primary, {journal}"), "us", &times[0], &times[1]);
        bench.report.compare(&format!("point SELECT on the replica, {journal}"), "us", &times[0], &times[2]);
    }
}

/// Commits with pauses, seen by a connection on the replica; milliseconds from the begin and from the end of each
/// COMMIT (never below zero) until the row is visible there.
fn lags_ms(writer: &Connection, replica: &Path, count: usize) -> (Vec<f64>, Vec<f64>) {
    let (seen_at, seen) = mpsc::channel();
    let first: i64 = sql::number(writer, "SELECT coalesce(max(id), 0) FROM t");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = open_replica(replica, first);
        let done = &done;
        scope.spawn(move || {
            let mut select =
                reader.prepare("SELECT coalesce(max(id), 0) FROM t").expect("the table is there");
            let mut last = first;
            while !done.load(Ordering::Relaxed) {
                let now: i64 = select.query_row([], |row| row.get(0)).expect("a reader is never blocked");
                if now > last {
                    let at = Instant::now();
                    for id in last + 1..=now {
                        let _ = seen_at.send((id, at));
                    }
                    last = now;
                }
                std::thread::sleep(Duration::from_micros(20));
            }
        });
        let (mut from_begin, mut from_end) = (Vec::new(), Vec::new());
        let mut insert =
            writer.prepare("INSERT INTO t(v) VALUES(hex(randomblob(50)))").expect("the table is there");
        for number in 1..=count {
            let begin = Instant::now();
            insert.execute([]).expect("the primary accepts writes");
            let end = Instant::now();
            let found = seen.recv_timeout(Duration::from_secs(30));
            let Ok((id, at)) = found else {
                done.store(true, Ordering::Relaxed);
                panic!("commit {number} is not visible on the replica after 30 s");
            };
            assert_eq!(id, first + i64::try_from(number).expect("small"));
            from_begin.push(at.duration_since(begin).as_secs_f64() * 1e3);
            from_end.push(at.saturating_duration_since(end).as_secs_f64() * 1e3);
            // A quiet database: the next commit comes when nothing is under way any more.
            std::thread::sleep(Duration::from_millis(5));
        }
        done.store(true, Ordering::Relaxed);
        (from_begin, from_end)
    })
}

fn report_lag(bench: &mut Bench, name: &str, lags: (Vec<f64>, Vec<f64>)) {
    let (mut begin, mut end) = lags;
    for (share, label) in [(0.5, "p50"), (0.99, "p99")] {
        bench.report.figure(&format!("{name}, {label} from COMMIT's end"), "ms", percentile(&mut end, share));
        bench.report.figure(
            &format!("{name}, {label} from COMMIT's begin"),
            "ms",
            percentile(&mut begin, share),
        );
    }
}

/// From COMMIT to visible on the replica, in the quiet case.
pub fn lag(bench: &mut Bench) {
    for (journal, synchronous) in [("wal", "normal"), ("wal", "full"), ("delete", "full")] {
        let db = format!("lag-{journal}-{synchronous}.db");
        let writer = prepare(&bench.cluster.primary.path(&db), journal, synchronous);
        let replica = bench.cluster.replicas[0].path(&db);
        let lags = lags_ms(&writer, &replica, bench.amount(1000));
        report_lag(bench, &format!("lag, {journal} {synchronous}"), lags);
    }
}

/// The rates of everybody with a reader held open on the replica, against those without one.
pub fn held(bench: &mut Bench) {
    let limit = Duration::from_millis(if bench.quick { 300 } else { 1500 });
    for (journal, synchronous) in [("wal", "normal"), ("wal", "full")] {
        let db = format!("held-{synchronous}.db");
        let writer = prepare(&bench.cluster.primary.path(&db), journal, synchronous);
        fill(&writer, ROWS);
        bench.cluster.converge(&db);
        let path = bench.cluster.replicas[0].path(&db);
        let reader = open_replica(&path, ROWS);
        let (mut commits, mut selects) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
        let mut lags = [(Vec::new(), Vec::new()), (Vec::new(), Vec::new())];
        for _ in 0..bench.rounds {
            for with in [0, 1] {
                let held = open_replica(&path, ROWS);
                if with == 1 {
                    sql::run(&held, "BEGIN");
                    sql::number(&held, "SELECT count(*) FROM t");
                }
                commits[with].push(commits_per_second(&writer, limit));
                bench.cluster.converge(&db);
                selects[with].push(select_us(&reader, bench.amount(50_000)));
                let (begin, end) = lags_ms(&writer, &path, bench.amount(200));
                lags[with].0.extend(begin);
                lags[with].1.extend(end);
            }
        }
        let [without, with] = commits;
        bench.report.compare(
            &format!("held reader (left: none): commits, {synchronous}"),
            "commits/s",
            &without,
            &with,
        );
        let [without, with] = selects;
        bench.report.compare(
            &format!("held reader (left: none): SELECT, {synchronous}"),
            "us",
            &without,
            &with,
        );
        let [without, with] = lags;
        report_lag(bench, &format!("no held reader: lag, {synchronous}"), without);
        report_lag(bench, &format!("held reader: lag, {synchronous}"), with);
    }
}
