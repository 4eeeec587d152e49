//! What the daemons need: memory under load and with large databases, time to start with many.

use std::time::{Duration, Instant};

use crate::Bench;
use crate::harness::{Node, is_plain, sql};
use crate::throughput::{commits_per_second, prepare};

const MIB: f64 = 1_048_576.0;

fn memory_mib(node: &Node) -> (f64, f64) {
    if is_plain() {
        return (f64::NAN, f64::NAN);
    }
    let (now, peak) = node.memory_bytes();
    (now as f64 / MIB, peak as f64 / MIB)
}

fn report_memory(bench: &mut Bench, moment: &str) {
    for (name, memory) in
        [("primary", memory_mib(&bench.cluster.primary)), ("replica", memory_mib(&bench.cluster.replicas[0]))]
    {
        bench.report.figure(&format!("memory of the {name}, {moment}"), "MiB", memory.0);
        bench.report.figure(&format!("memory of the {name}, {moment}, peak"), "MiB", memory.1);
    }
}

/// Resident memory while one database is written without pause: it must stay flat.
pub fn memory(bench: &mut Bench) {
    report_memory(bench, "idle");
    let writers = [("wal", "normal"), ("wal", "full"), ("delete", "full")].map(|(journal, synchronous)| {
        prepare(
            &bench.cluster.primary.path(&format!("memory-{journal}-{synchronous}.db")),
            journal,
            synchronous,
        )
    });
    let limit = Duration::from_secs(if bench.quick { 2 } else { 20 });
    for minute in 1..=6 {
        for writer in &writers {
            commits_per_second(writer, limit);
            // The database stays small: growth of memory is then growth of the daemon's own.
            sql::run(writer, "DELETE FROM t");
        }
        report_memory(bench, &format!("after {} s of writing", minute * 3 * limit.as_secs()));
    }
}

/// A database of 2 GiB and one transaction of 1 GiB.
pub fn large(bench: &mut Bench) {
    let (blob, database, transaction) = (1_048_576, bench.amount(2048), bench.amount(1024));
    let db = "large.db";
    let writer = prepare(&bench.cluster.primary.path(db), "wal", "full");
    let insert = |count: usize| {
        format!(
            "INSERT INTO t(v) WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM n WHERE x<{count})
             SELECT randomblob({blob}) FROM n"
        )
    };
    for _ in 0..database.div_ceil(64) {
        sql::run(&writer, &insert(64));
    }
    bench.cluster.converge(db);
    report_memory(bench, &format!("database of {database} MiB"));
    let start = Instant::now();
    sql::run(&writer, &insert(transaction));
    bench.report.figure(&format!("one transaction of {transaction} MiB"), "s", start.elapsed().as_secs_f64());
    bench.cluster.converge(db);
    bench.report.figure("until the replica has it too", "s", start.elapsed().as_secs_f64());
    report_memory(bench, "after the large transaction");
    sql::check_integrity(&sql::open(&bench.cluster.replicas[0].path(db)));
}

/// Start of a node that has 2,000 databases no application has open.
pub fn cold(bench: &mut Bench) {
    let count = bench.amount(2000);
    std::fs::create_dir(bench.cluster.primary.path("tenants")).expect("the directory is new");
    for number in 0..count {
        let connection =
            prepare(&bench.cluster.primary.path(&format!("tenants/{number}.db")), "wal", "normal");
        sql::run(&connection, "INSERT INTO t(v) VALUES('here')");
    }
    let last = format!("tenants/{}.db", count - 1);
    bench.cluster.converge(&last);
    report_memory(bench, &format!("{count} cold databases"));
    for primary in [true, false] {
        let node = if primary { &mut bench.cluster.primary } else { &mut bench.cluster.replicas[0] };
        for killed in [false, true] {
            if killed {
                node.kill9()
            } else {
                let _ = node.terminate();
            }
            let start = Instant::now();
            node.must_start();
            let took = start.elapsed().as_secs_f64();
            assert_eq!(sql::number(&sql::open(&node.path(&last)), "SELECT count(*) FROM t"), 1);
            let (who, how) =
                (if primary { "primary" } else { "replica" }, if killed { "kill -9" } else { "its end" });
            bench.report.figure(&format!("start of the {who} with {count} databases after {how}"), "s", took);
        }
    }
}
