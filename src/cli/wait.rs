use std::time::Duration;

use anyhow::Context;
use tokio::time::Instant;

use super::args::WaitArgs;
use super::exit_code::TimedOut;
use super::output::out;
use crate::http::{Client, ClientError, DatabaseDocument, NewestDocument, escape_name};
use crate::types::{DbName, Txid};

/// Between two questions whether a node is ready.
const ASK_EVERY: Duration = Duration::from_millis(100);

/// `skein wait`: until the node is ready, until it has the transaction, or both; prints where the database then stands.
pub(super) async fn run(args: WaitArgs) -> anyhow::Result<i32> {
    let client = args.node.client()?;
    let deadline = Instant::now() + args.timeout;
    if args.ready {
        wait_ready(&client, deadline, args.timeout).await?;
    }
    let Some(name) = &args.db else { return Ok(0) };
    let txid = match args.pos {
        Some(txid) => txid,
        None => newest(&client, name).await?,
    };
    let path = format!(
        "/v1/databases/{}/wait?txid={txid}&timeout_ms={}",
        escape_name(name.as_str()),
        deadline.duration_since(Instant::now()).as_millis()
    );
    let db: DatabaseDocument = client.get(&path).await?;
    match args.json {
        true => out(&format!("{}\n", serde_json::to_string_pretty(&db)?))?,
        false => out(&format!("{}/{}\n", db.txid, db.checksum))?,
    }
    Ok(0)
}

/// Asks again and again, because a node that does not listen yet cannot tell when it is ready.
async fn wait_ready(client: &Client, deadline: Instant, timeout: Duration) -> anyhow::Result<()> {
    let mut last = format!("no node answers at {}", client.url());
    loop {
        match tokio::time::timeout_at(deadline, client.text("/readyz")).await {
            Ok(Ok(_)) => return Ok(()),
            // Whom it may believe, or what its URL is, does not change.
            Ok(Err(error @ (ClientError::Url(_) | ClientError::Authority(_) | ClientError::Security(_)))) => {
                return Err(error.into());
            }
            Ok(Err(error)) => last = error.to_string(),
            Err(_) => {}
        }
        if Instant::now() + ASK_EVERY >= deadline {
            return Err(TimedOut(format!("not ready within {timeout:?}: {last}")).into());
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

/// The newest transaction there is: a quorum has confirmed that nobody has a newer one.
async fn newest(client: &Client, db: &DbName) -> anyhow::Result<Txid> {
    let found: NewestDocument =
        client.get(&format!("/v1/databases/{}/newest", escape_name(db.as_str()))).await?;
    found.txid.parse().with_context(|| format!("database {db} has no transaction on the primary"))
}
