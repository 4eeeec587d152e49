use std::time::{Duration, Instant};

use anyhow::bail;

use super::backup_args::{BackupCommand, BackupCommandArgs};
use super::exit_code::TimedOut;
use super::output::{out, size, table};
use super::primary::primary;
use super::restore::{told, try_out};
use crate::backup::{Archive, BackupStatus, Location, connect, databases, directory_of};
use crate::http::{Client, NewestDocument, escape_name};
use crate::types::{DbName, Pos, Txid};

/// `skein backup`.
pub(super) async fn run(args: BackupCommandArgs) -> anyhow::Result<i32> {
    match args.command {
        BackupCommand::Status { json } => {
            let client = primary(args.node.client()?).await?;
            let all: Vec<BackupStatus> = client.get("/v1/backup").await?;
            if json {
                out(&format!("{}\n", serde_json::to_string_pretty(&all)?))?;
            } else if all.is_empty() {
                out("no backup is configured: give --backup-url, or url in the section [backup]\n")?;
            } else {
                out(&all.iter().map(status).collect::<Vec<_>>().join("\n"))?;
            }
            Ok(i32::from(all.iter().any(|backup| backup.warning.is_some())))
        }
        BackupCommand::Wait { db, timeout } => wait(&primary(args.node.client()?).await?, &db, timeout).await,
        BackupCommand::List { from, db: Some(db) } => points(&from, &db).await,
        BackupCommand::List { from, db: None } => list(&from).await,
        BackupCommand::Verify { from, db } => verify(&from, db).await,
    }
}

/// Waits until every bucket has the newest transaction of a database.
async fn wait(client: &Client, db: &DbName, timeout: Duration) -> anyhow::Result<i32> {
    let newest: NewestDocument =
        client.get(&format!("/v1/databases/{}/newest", escape_name(db.as_str()))).await?;
    let (goal, deadline): (Txid, _) = (newest.txid.parse()?, Instant::now() + timeout);
    loop {
        let all: Vec<BackupStatus> = client.get("/v1/backup").await?;
        if all.is_empty() {
            bail!("no backup is configured: give --backup-url, or url in the section [backup]");
        }
        let behind = all.iter().find(|backup| {
            let found = backup.databases.iter().find(|found| found.name == db.as_str());
            let pos: Option<Pos> = found.and_then(|found| found.position.as_ref()?.parse().ok());
            pos.is_none_or(|pos| pos.txid < Some(goal))
        });
        let Some(behind) = behind else { return Ok(0) };
        if Instant::now() >= deadline {
            let why = behind.warning.as_ref().map_or_else(String::new, |why| format!(": {why}"));
            let text = format!("{} does not have transaction {goal} of {db} yet{why}", behind.url);
            return Err(TimedOut(text).into());
        }
        // The node tells how far it is when it is asked, and not by itself.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn heads(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn status(backup: &BackupStatus) -> String {
    let mut rows = vec![heads(&["DATABASE", "POSITION", "TIME", "SNAPSHOT", "FILES", "VERIFIED", "NOTE"])];
    let or = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    for db in &backup.databases {
        let ended = db.ended.as_ref().map(|ended| format!("dropped {ended}"));
        rows.push(vec![
            db.name.clone(),
            or(&db.position),
            or(&db.time),
            or(&db.snapshot),
            db.files.to_string(),
            or(&db.verified),
            db.error.clone().or(ended).unwrap_or_default(),
        ]);
    }
    let warning = backup.warning.as_ref().map_or_else(String::new, |why| format!("WARNING: {why}\n"));
    format!(
        "{warning}backup {}  {}  behind for {} ms\n\n{}",
        backup.url,
        backup.state,
        backup.lag_ms,
        table(&rows)
    )
}

/// The databases of a backup.
async fn list(from: &Location) -> anyhow::Result<i32> {
    let objects = connect(from)?;
    let mut rows = vec![heads(&["DATABASE", "LAST TXID", "TIME", "FILES", "SIZE", "NOTE"])];
    for db in databases(&*objects).await? {
        let archive = Archive::open(objects.clone(), &directory_of(&db)).await?;
        let ended = archive.manifest().and_then(|manifest| manifest.ended_ms);
        let ended = ended.map(|ms| format!("dropped {}", crate::types::Timestamp::from_ms(ms)));
        let (txid, time) = match archive.files().last() {
            Some(last) => (last.range.max().to_string(), archive.time_of(last).await?.to_string()),
            None => ("-".to_owned(), "-".to_owned()),
        };
        let bytes = archive.files().iter().map(|file| file.size_bytes).sum();
        let files = archive.files().len().to_string();
        rows.push(vec![db.to_string(), txid, time, files, size(bytes), ended.unwrap_or_default()]);
    }
    out(&table(&rows))?;
    Ok(0)
}

/// The points at which a database can be restored.
async fn points(from: &Location, db: &DbName) -> anyhow::Result<i32> {
    let archive = Archive::open(connect(from)?, &directory_of(db)).await?;
    if archive.files().is_empty() {
        bail!("there is no backup of {db} at {from}");
    }
    let mut rows = vec![heads(&["TXID", "TIME", "LEVEL", "FROM TXID", "SIZE"])];
    for file in archive.files() {
        let time = archive.time_of(file).await?;
        let (max, min) = (file.range.max().to_string(), file.range.min().to_string());
        rows.push(vec![max, time.to_string(), file.level.to_string(), min, size(file.size_bytes)]);
    }
    out(&table(&rows))?;
    Ok(0)
}

async fn verify(from: &Location, db: Option<DbName>) -> anyhow::Result<i32> {
    let objects = connect(from)?;
    let all = match db {
        Some(db) => vec![db],
        None => databases(&*objects).await?,
    };
    if all.is_empty() {
        bail!("there is no backup at {from}");
    }
    let scratch = tempfile::tempdir()?;
    let mut failed = 0;
    for db in all {
        match try_out(&objects, &db, scratch.path()).await {
            Ok(summary) => out(&format!("{db}: {}\n", told(&summary)))?,
            Err(error) => {
                failed += 1;
                out(&format!("{db}: {error:#}\n"))?;
            }
        }
    }
    Ok(i32::from(failed > 0))
}
