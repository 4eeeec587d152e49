use anyhow::{Context, bail};

use super::history_args::{BranchArgs, BranchCommand, HistoryArgs};
use super::output;
use super::primary::{path_of, primary};
use crate::http::{
    BranchRequest, Client, DatabaseDocument, DiffDocument, HistoryDocument, RewindRequest, escape_name,
};
use crate::types::{DbName, PointInTime};

/// `skein history`.
pub(super) async fn run(args: HistoryArgs) -> anyhow::Result<i32> {
    let client = args.node.client()?;
    let path = format!("{}/history?limit={}", path_of(&args.db), args.limit);
    let history: HistoryDocument = client.get(&path).await?;
    match args.json {
        true => output::json(&history)?,
        false => output::out(&shown(&history))?,
    }
    Ok(0)
}

fn shown(history: &HistoryDocument) -> String {
    let mut rows = vec![["TXID", "TIME", "PAGES", "SIZE"].map(str::to_owned).to_vec()];
    for one in &history.transactions {
        let txid = match one.first_txid == one.txid {
            true => one.txid.clone(),
            false => format!("{} (from {})", one.txid, one.first_txid),
        };
        rows.push(vec![txid, one.time.clone(), one.pages.to_string(), one.size_pages.to_string()]);
    }
    let mut text = output::table(&rows);
    if history.more {
        text.push_str("and older ones: --limit COUNT\n");
    }
    for gap in &history.gaps {
        let to = gap.to.as_deref().unwrap_or("now");
        text.push_str(&format!("not known from {} to {to}: {}\n", gap.from, gap.why));
    }
    if let (Some(txid), Some(time)) = (&history.oldest_txid, &history.oldest_time) {
        text.push_str(&format!("{} begins with {txid} ({time}) on {}\n", history.name, history.node));
    }
    text
}

/// `skein db rewind`.
pub(super) async fn rewind(
    client: Client,
    db: &DbName,
    to: PointInTime,
    yes: bool,
    json: bool,
) -> anyhow::Result<()> {
    let client = primary(client).await?;
    if !yes && !output::confirmed(&format!("put {db} back to {to}?"))? {
        bail!("{db} stays as it is");
    }
    let request = RewindRequest { to: to.to_string() };
    let done: Option<DatabaseDocument> = client.ask(&format!("{}/rewind", path_of(db)), &request).await?;
    report(done, &format!("{db} is as it was at {to}"), json)
}

fn report(done: Option<DatabaseDocument>, what: &str, json: bool) -> anyhow::Result<()> {
    let done = done.context("the database was dropped meanwhile")?;
    match json {
        true => output::json(&done),
        false => Ok(output::out(&format!("{what}; its transaction is {}\n", done.txid))?),
    }
}

/// `skein db diff`.
pub(super) async fn diff(
    client: &Client,
    db: &DbName,
    (from, to): (PointInTime, PointInTime),
    json: bool,
) -> anyhow::Result<()> {
    let [from, to] = [from, to].map(|point| escape_name(&point.to_string()));
    let found: DiffDocument = client.get(&format!("{}/diff?from={from}&to={to}", path_of(db))).await?;
    if json {
        return output::json(&found);
    }
    let pages = found.pages.len();
    let tables: String = found.tables.iter().map(|table| format!("  {table}\n")).collect();
    Ok(output::out(&format!("{} to {}: {pages} pages differ\n{tables}", found.from, found.to))?)
}

/// `skein branch`.
pub(super) async fn branch(args: BranchArgs) -> anyhow::Result<i32> {
    let client = primary(args.node.client()?).await?;
    match args.command {
        BranchCommand::Create { from, new } => {
            let (db, at) = split_point(&from)?;
            let request = BranchRequest { name: new.to_string(), at: at.map(|at| at.to_string()) };
            let path = format!("{}/branch", path_of(&db));
            let done: Option<DatabaseDocument> = client.ask(&path, &request).await?;
            report(done, &format!("{new} begins as {from}"), args.json)?;
        }
        BranchCommand::Drop { db } => {
            if !args.yes && !output::confirmed(&format!("drop {db} on all nodes?"))? {
                bail!("{db} stays as it is");
            }
            super::db::drop_told(&client, &db, args.json).await?;
        }
    }
    Ok(0)
}

/// `DB` or `DB@POINT`; a name may have an `@` itself.
fn split_point(text: &str) -> anyhow::Result<(DbName, Option<PointInTime>)> {
    match text.rsplit_once('@') {
        Some((db, point)) => {
            Ok((DbName::new(db)?, Some(point.parse().with_context(|| format!("the point of {text}"))?)))
        }
        None => Ok((DbName::new(text)?, None)),
    }
}
