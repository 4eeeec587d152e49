use anyhow::Context;

use super::args::WaitArgs;
use super::output::out;
use crate::http::{Client, DatabaseDocument, NewestDocument, escape_name};
use crate::types::{DbName, Txid};

/// `skein wait`: until the node has the transaction; prints where the database then stands.
pub(super) async fn run(args: WaitArgs) -> anyhow::Result<i32> {
    let client = args.node.client()?;
    let txid = match args.pos {
        Some(txid) => txid,
        None => newest(&client, &args.db).await?,
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

/// The newest transaction there is: a quorum has confirmed that nobody has a newer one.
async fn newest(client: &Client, db: &DbName) -> anyhow::Result<Txid> {
    let found: NewestDocument =
        client.get(&format!("/v1/databases/{}/newest", escape_name(db.as_str()))).await?;
    found.txid.parse().with_context(|| format!("database {db} has no transaction on the primary"))
}
