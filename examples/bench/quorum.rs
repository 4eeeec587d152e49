//! Three voters: commits by quorum, failover, handoff; and many replicas on one primary.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use crate::Bench;
use crate::harness::{Node, Settings, Voters, eventually, sql, wait};
use crate::report::median;
use crate::throughput::{commits_per_second, prepare};

/// Seconds of one write of 4 KiB over blocks that exist, with its fdatasync; the median of many.
fn sync_seconds(dir: &Path) -> f64 {
    let file = std::fs::File::options()
        .create(true)
        .truncate(true)
        .write(true)
        .open(dir.join("sync"))
        .expect("the directory is new");
    let page = [7; 4096];
    file.write_all_at(&vec![0; 4 << 20], 0).and_then(|()| file.sync_all()).expect("there is space");
    let once = |round: u64| {
        let start = Instant::now();
        file.write_all_at(&page, round % 1024 * 4096)
            .and_then(|()| file.sync_data())
            .expect("the disk works");
        start.elapsed().as_secs_f64()
    };
    median((0..500).map(once).collect())
}

/// Seconds of a 4 KiB message to another thread over loopback TCP and a short answer; the median of many.
fn round_trip_seconds() -> f64 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback works");
    let addr = listener.local_addr().expect("it is bound");
    let echo = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("somebody connects");
        stream.set_nodelay(true).expect("a socket");
        let mut page = [0; 4096];
        while stream.read_exact(&mut page).is_ok() && stream.write_all(&[1]).is_ok() {}
    });
    let mut stream = TcpStream::connect(addr).expect("it listens");
    stream.set_nodelay(true).expect("a socket");
    let mut once = |_| {
        let start = Instant::now();
        stream.write_all(&[7; 4096]).and_then(|()| stream.read_exact(&mut [0])).expect("loopback works");
        start.elapsed().as_secs_f64()
    };
    let seconds = median((0..1000).map(&mut once).collect());
    drop(stream);
    echo.join().expect("the echo ends with its connection");
    seconds
}

/// FULL commits of 1, 4 and 16 databases at once, beside 1/(fdatasync + round trip).
pub fn quorum(bench: &mut Bench) {
    let Some(voters) = Voters::start_below(bench.dir(), 3, bench.cluster.primary.passthrough()) else {
        return;
    };
    let primary = voters.primary();
    let limit = Duration::from_millis(if bench.quick { 300 } else { 1500 });
    let (mut bounds, mut one) = (Vec::new(), Vec::new());
    for databases in [1, 4, 16] {
        let connections: Vec<_> = (0..databases)
            .map(|number| {
                let path = voters.nodes[primary].path(&format!("quorum-{databases}-{number}.db"));
                prepare(&path, "wal", "full")
            })
            .collect();
        let (mut rates, barrier) = (Vec::new(), Barrier::new(databases));
        let mut connections = connections;
        for _ in 0..bench.rounds {
            if databases == 1 {
                bounds.push(1.0 / (sync_seconds(&bench.plain) + round_trip_seconds()));
            }
            let rate = std::thread::scope(|scope| {
                let threads: Vec<_> = connections
                    .drain(..)
                    .map(|connection| {
                        let barrier = &barrier;
                        scope.spawn(move || {
                            barrier.wait();
                            (commits_per_second(&connection, limit), connection)
                        })
                    })
                    .collect();
                let ended: Vec<_> =
                    threads.into_iter().map(|thread| thread.join().expect("no panic")).collect();
                ended
                    .into_iter()
                    .map(|(rate, connection)| (rate, connections.push(connection)).0)
                    .sum::<f64>()
            });
            rates.push(rate);
        }
        let name = format!("quorum commits, {databases} databases at once");
        match databases {
            1 => {
                bench.report.compare(
                    "quorum commits, 1 database; 1/(sync + trip)",
                    "commits/s",
                    &bounds,
                    &rates,
                );
                one = rates;
            }
            _ => bench.report.compare(&format!("{name}; one database"), "commits/s", &one, &rates),
        }
    }
}

/// kill -9 and handoff: until another node has taken a write.
pub fn failover(bench: &mut Bench) {
    let Some(mut voters) = Voters::start_below(bench.dir(), 3, bench.cluster.primary.passthrough()) else {
        return;
    };
    drop(prepare(&voters.nodes[voters.primary()].path("failover.db"), "wal", "full"));
    voters.same_bytes("failover.db");
    let rounds = if bench.quick { 5 } else { 20 };
    let statement = "INSERT INTO t(v) VALUES('after')";
    let (mut killed, mut handed) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let primary = voters.primary();
        let others: Vec<usize> = (0..3).filter(|which| *which != primary).collect();
        voters.nodes[primary].kill9();
        killed.push(voters.first_write("failover.db", statement, &others).1.as_secs_f64() * 1e3);
        voters.nodes[primary].must_start();
        voters.wait_voting(3);
    }
    for _ in 0..rounds {
        let primary = voters.primary();
        let to = (primary + 1) % 3;
        let load = sql::open(&voters.nodes[primary].path("failover.db"));
        load.busy_timeout(Duration::from_millis(1)).expect("a connection");
        let (last, name) = (std::sync::Mutex::new(Instant::now()), voters.nodes[to].settings.name.clone());
        let first = std::thread::scope(|scope| {
            let last = &last;
            scope.spawn(move || {
                while load.execute_batch(statement).is_ok() {
                    *last.lock().expect("no panic") = Instant::now();
                }
            });
            let taken = scope.spawn(|| {
                voters.first_write("failover.db", statement, &[to]);
                Instant::now()
            });
            std::thread::sleep(Duration::from_millis(50));
            voters.nodes[primary].must_client(&["handoff", &name]);
            taken.join().expect("no panic")
        });
        let last = *last.lock().expect("no panic");
        handed.push(first.saturating_duration_since(last).as_secs_f64() * 1e3);
    }
    bench.report.distribution("kill -9 of the primary to the first write elsewhere", "ms", &killed);
    bench.report.distribution("handoff under load, last write to first write elsewhere", "ms", &handed);
}

/// What 20 replicas cost the primary, and how far they are behind.
pub fn replicas(bench: &mut Bench) {
    let count = if bench.quick { 5 } else { 20 };
    let limit = Duration::from_millis(if bench.quick { 300 } else { 1500 });
    let connection = prepare(&bench.cluster.primary.path("many.db"), "wal", "full");
    let (mut alone, mut followed) = (Vec::new(), Vec::new());
    for _ in 0..bench.rounds {
        alone.push(commits_per_second(&connection, limit));
    }
    let dir = tempfile::tempdir_in(bench.cluster.dir()).expect("there is space");
    let listen = bench.cluster.primary.listen;
    let mut nodes: Vec<Node> = (0..count)
        .map(|number| Node::new(dir.path(), Settings::replica(&format!("many{number}"), listen)))
        .collect();
    nodes.iter_mut().for_each(Node::must_start);
    let mut lags = Vec::new();
    for _ in 0..bench.rounds {
        followed.push(commits_per_second(&connection, limit));
        let (txid, _) = eventually("the primary names it", || bench.cluster.primary.pos("many.db"));
        let start = Instant::now();
        for node in &nodes {
            wait(node, "many.db", &txid, Duration::from_secs(30)).expect("a replica follows");
        }
        lags.push(start.elapsed().as_secs_f64() * 1e3);
    }
    let name = format!("commits on the primary of {count} more replicas; of one");
    bench.report.compare(&name, "commits/s", &alone, &followed);
    bench.report.distribution(&format!("until all of {count} replicas have the last commit"), "ms", &lags);
}
