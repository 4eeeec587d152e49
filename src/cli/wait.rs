use anyhow::bail;

use super::args::WaitArgs;
use super::output::out;
use crate::http::{Client, DatabaseDocument, escape_name};
use crate::types::{DbName, Txid};

/// `skein wait`: until the node has the transaction; prints where the database then stands.
pub(super) async fn run(args: WaitArgs) -> anyhow::Result<i32> {
    let client = args.node.client()?;
    let txid = match args.pos {
        Some(txid) => txid,
        None => last_of_primary(&client, &args.db).await?,
    };
    let path = format!(
        "/v1/databases/{}/wait?txid={txid}&timeout_ms={}",
        escape_name(args.db.as_str()),
        args.timeout.as_millis()
    );
    let db: DatabaseDocument = client.get(&path).await?;
    out(&format!("{}/{}\n", db.txid, db.checksum))?;
    Ok(0)
}

/// The last transaction the primary has now.
async fn last_of_primary(client: &Client, db: &DbName) -> anyhow::Result<Txid> {
    let status = client.status().await?;
    let Some(primary) = status.primary else {
        bail!("database {db}: no primary is known to node {}, so give --pos", status.node);
    };
    let primary = Client::new(&primary.http)?;
    let found: DatabaseDocument = primary.get(&format!("/v1/databases/{}", escape_name(db.as_str()))).await?;
    Ok(found.txid.parse()?)
}
