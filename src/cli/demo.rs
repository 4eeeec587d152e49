use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rusqlite::{Connection, OpenFlags};
use tokio::signal::unix::{SignalKind, signal};

use super::args::DemoArgs;
use super::demo_node::DemoNode;
use super::output::out;
use crate::http::{Client, DatabaseDocument};

const DATABASE: &str = "demo.db";
const ROWS: u32 = 1000;

/// `skein demo`: three nodes on loopback; writes on one, reads on the others.
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
    say(&format!("Three nodes on this machine, below {}:", dir.display()))?;
    nodes.push(DemoNode::start(dir, "n1", &["--bootstrap"]).await?);
    say(&format!("  n1  primary  {}", nodes[0].announcement))?;
    let join = nodes[0].listen.clone();
    for name in ["n2", "n3"] {
        let node = DemoNode::start(dir, name, &["--role", "replica", "--join", &join]).await?;
        say(&format!("  {name}  replica  {}", node.announcement))?;
        nodes.push(node);
    }
    let (primary, replicas) = (&nodes[0], &nodes[1..]);
    say("\nAn application writes on the primary, into an ordinary SQLite file:")?;
    let path = primary.mount.join(DATABASE);
    say(&format!("  {}", path.display()))?;
    let (took, sum) = in_thread(move || write(&path)).await?;
    let micros = took.as_micros() / u128::from(ROWS);
    say(&format!(
        "  {ROWS} transactions, each acknowledged when a quorum has it: {took:.0?} ({micros} us each)"
    ))?;
    let at: DatabaseDocument = Client::new(&primary.http)?.get(&format!("/v1/databases/{DATABASE}")).await?;
    say(&format!("  it stands at transaction {}, checksum {}", at.txid, at.checksum))?;
    say("\nThe same path on the replicas is a live copy:")?;
    for replica in replicas {
        read_on(replica, &at, sum).await?;
    }
    let path = replicas[0].mount.join(DATABASE);
    let refusal = in_thread(move || refused(&path)).await?;
    say(&format!("\nWriting on {} is refused: {refusal}", replicas[0].name))?;
    if exit {
        return say("\nDone.");
    }
    say("\nTry it in another terminal:")?;
    say(&format!("  sqlite3 {}", primary.mount.join(DATABASE).display()))?;
    say(&format!("  sqlite3 {}", replicas[0].mount.join(DATABASE).display()))?;
    say(&format!("  skein status --url {}", primary.http))?;
    say("Ctrl-C ends the demonstration.")?;
    std::future::pending().await
}

async fn read_on(replica: &DemoNode, at: &DatabaseDocument, sum: i64) -> anyhow::Result<()> {
    let start = Instant::now();
    let wait = format!("/v1/databases/{DATABASE}/wait?txid={}&timeout_ms=20000", at.txid);
    let there: DatabaseDocument = Client::new(&replica.http)?.get(&wait).await?;
    let waited = start.elapsed();
    let path = replica.mount.join(DATABASE);
    let (rows, total) = in_thread(move || read(&path)).await?;
    ensure!(
        there.checksum == at.checksum && rows == ROWS && total == sum,
        "node {} has {rows} rows with sum {total}, checksum {}; expected {ROWS} rows with sum {sum}, checksum {}",
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

/// What SQLite says to a writer on a replica.
fn refused(path: &Path) -> anyhow::Result<String> {
    let db = Connection::open(path)?;
    match db.execute("DELETE FROM entry", []) {
        Ok(_) => anyhow::bail!("{}: a replica took a write", path.display()),
        Err(error) => Ok(error.to_string()),
    }
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
