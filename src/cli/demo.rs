use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rusqlite::{Connection, OpenFlags};
use tokio::signal::unix::{SignalKind, signal};

use super::args::DemoArgs;
use super::demo_node::DemoNode;
use super::output::out;
use crate::http::{Client, DatabaseDocument};

const DATABASE: &str = "demo.db";
const ROWS: u32 = 1000;
/// The amount of the entry written after the takeover.
const AFTERWARDS: i64 = 7;

/// `skein demo`: three voters on loopback; writes on one, reads on the others, kills the primary, shows the takeover
/// and the way back.
pub(super) async fn run(args: DemoArgs) -> anyhow::Result<i32> {
    let (dir, temporary) = directory(args.dir)?;
    let mut nodes = Vec::new();
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for Ctrl-C")?;
    let mut terminate = signal(SignalKind::terminate()).context("listening for signals")?;
    let told = tokio::select! {
        told = tell(&dir, &mut nodes, args.exit) => told,
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
    };
    let stopped = stop(&mut nodes).await;
    told?;
    stopped?;
    if let Some(temporary) = temporary {
        temporary.close().with_context(|| format!("removing {}", dir.display()))?;
    }
    Ok(0)
}

fn directory(wanted: Option<PathBuf>) -> anyhow::Result<(PathBuf, Option<tempfile::TempDir>)> {
    match wanted {
        Some(dir) => {
            std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
            let empty = std::fs::read_dir(&dir).with_context(|| dir.display().to_string())?.next().is_none();
            ensure!(empty, "directory {} is not empty; name an empty or a new one", dir.display());
            Ok((dir.canonicalize()?, None))
        }
        None => {
            let dir = tempfile::Builder::new().prefix("skein-demo-").tempdir();
            let dir = dir.context("making a temporary directory; name one with --dir")?;
            Ok((dir.path().to_owned(), Some(dir)))
        }
    }
}

async fn tell(dir: &Path, nodes: &mut Vec<DemoNode>, exit: bool) -> anyhow::Result<()> {
    say(&format!("Three voters on this machine, below {}:", dir.display()))?;
    nodes.push(DemoNode::start(dir, "n1", &["--bootstrap"]).await?);
    let join = nodes[0].listen.clone();
    for name in ["n2", "n3"] {
        nodes.push(DemoNode::start(dir, name, &["--join", &join]).await?);
    }
    nodes.iter().try_for_each(|node| say(&format!("  {}  {}", node.name, node.announcement)))?;
    wait_voting(&nodes[0]).await?;
    say("\nAn application writes on the primary, n1, into an ordinary SQLite file:")?;
    let path = nodes[0].mount.join(DATABASE);
    say(&format!("  {}", path.display()))?;
    let (took, mut sum) = in_thread(move || write(&path)).await?;
    let micros = took.as_micros() / u128::from(ROWS);
    say(&format!(
        "  {ROWS} transactions, each on two disks when it was acknowledged: {took:.0?} ({micros} us each)"
    ))?;
    let at: DatabaseDocument = Client::new(&nodes[0].http)?.get(&format!("/v1/databases/{DATABASE}")).await?;
    say(&format!("  it stands at transaction {}, checksum {}", at.txid, at.checksum))?;
    say("\nThe same path on the others is a live copy:")?;
    for node in &nodes[1..] {
        read_on(node, &at, ROWS, sum).await?;
    }
    say("\nThe primary is killed (kill -9). The same statement is tried on the others until one takes it:")?;
    let paths: Vec<_> =
        nodes[1..].iter().map(|node| (node.name.clone(), node.mount.join(DATABASE))).collect();
    nodes[0].kill().await?;
    let (name, took) = in_thread(move || write_somewhere(&paths)).await?;
    sum += AFTERWARDS;
    say(&format!("  {name} is primary; it took the write {took:.0?} after the kill"))?;
    let Some(primary) = nodes.iter().find(|node| node.name == name) else { bail!("no node is named {name}") };
    let path = primary.mount.join(DATABASE);
    let (rows, total) = in_thread(move || read(&path)).await?;
    ensure!((rows, total) == (ROWS + 1, sum), "{name} has {rows} rows with sum {total}");
    say(&format!("  all {ROWS} acknowledged transactions and the new one are there"))?;
    let at: DatabaseDocument = Client::new(&primary.http)?.get(&format!("/v1/databases/{DATABASE}")).await?;
    say("\nn1 comes back, follows, and has what it missed:")?;
    let join: Vec<String> = nodes[1..].iter().map(|node| node.listen.clone()).collect();
    nodes[0].restart(&["--join", &join.join(",")]).await?;
    read_on(&nodes[0], &at, ROWS + 1, sum).await?;
    if exit {
        return say("\nDone.");
    }
    say("\nTry it in another terminal:")?;
    for node in nodes.iter() {
        say(&format!("  sqlite3 {}", node.mount.join(DATABASE).display()))?;
    }
    say(&format!("  skein status --url {}", nodes[0].http))?;
    say(&format!("  skein handoff n1 --url {}", nodes[0].http))?;
    say("Ctrl-C ends the demonstration.")?;
    std::future::pending().await
}

/// Waits until all three vote.
async fn wait_voting(node: &DemoNode) -> anyhow::Result<()> {
    let client = Client::new(&node.http)?;
    let voting = async {
        loop {
            let members = client.status().await?.members;
            if members.iter().filter(|member| member.standing == "votes").count() == 3 {
                return anyhow::Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), voting).await.context("the nodes do not become voters")?
}

async fn read_on(replica: &DemoNode, at: &DatabaseDocument, expected: u32, sum: i64) -> anyhow::Result<()> {
    let start = Instant::now();
    let wait = format!("/v1/databases/{DATABASE}/wait?txid={}&timeout_ms=20000", at.txid);
    let there: DatabaseDocument = Client::new(&replica.http)?.get(&wait).await?;
    let waited = start.elapsed();
    let path = replica.mount.join(DATABASE);
    let (rows, total) = in_thread(move || read(&path)).await?;
    ensure!(
        there.checksum == at.checksum && rows == expected && total == sum,
        "node {} has {rows} rows with sum {total}, checksum {}; expected {expected} rows with sum {sum}, checksum {}",
        replica.name,
        there.checksum,
        at.checksum
    );
    say(&format!(
        "  {}  {rows} rows, sum {total}, checksum {}, waited {:.1} ms",
        replica.name,
        there.checksum,
        waited.as_secs_f64() * 1000.0
    ))
}

fn write(path: &Path) -> anyhow::Result<(Duration, i64)> {
    let db = Connection::open(path)?;
    db.busy_timeout(Duration::from_secs(5))?;
    db.query_row("PRAGMA journal_mode = wal", [], |_| Ok(()))?;
    db.execute_batch("CREATE TABLE entry(id INTEGER PRIMARY KEY, amount INTEGER NOT NULL, note TEXT)")?;
    let mut insert = db.prepare("INSERT INTO entry(amount, note) VALUES (?1, ?2)")?;
    let start = Instant::now();
    let mut sum = 0;
    for row in 0..ROWS {
        let amount = i64::from(row * row % 997);
        insert.execute((amount, format!("entry {row}")))?;
        sum += amount;
    }
    Ok((start.elapsed(), sum))
}

fn read(path: &Path) -> anyhow::Result<(u32, i64)> {
    let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let check: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
    ensure!(check == "ok", "{}: {check}", path.display());
    Ok(db.query_row("SELECT count(*), sum(amount) FROM entry", [], |row| Ok((row.get(0)?, row.get(1)?)))?)
}

/// Writes one row on whichever of the nodes takes it first, and says how long that took.
fn write_somewhere(paths: &[(String, PathBuf)]) -> anyhow::Result<(String, Duration)> {
    let start = Instant::now();
    let mut connections = Vec::new();
    for (name, path) in paths {
        let db = Connection::open(path)?;
        db.busy_timeout(Duration::from_millis(20))?;
        connections.push((name, db));
    }
    while start.elapsed() < Duration::from_secs(30) {
        for (name, db) in &connections {
            if db
                .execute("INSERT INTO entry(amount, note) VALUES (?1, 'after the kill')", [AFTERWARDS])
                .is_ok()
            {
                return Ok(((*name).clone(), start.elapsed()));
            }
        }
    }
    bail!("nobody took over within 30 s")
}

async fn stop(nodes: &mut Vec<DemoNode>) -> anyhow::Result<()> {
    let mut result = Ok(());
    // Replicas first: they would only look for a primary that is gone.
    for node in nodes.iter_mut().rev() {
        let stopped = node.stop().await;
        if result.is_ok() {
            result = stopped;
        }
    }
    nodes.clear();
    result
}

async fn in_thread<T: Send + 'static>(
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(work).await.context("running an application")?
}

fn say(line: &str) -> anyhow::Result<()> {
    Ok(out(&format!("{line}\n"))?)
}
