use anyhow::Context;

use super::args::SqlEngineArgs;
use crate::sql::engine::serve_engine;

/// `skein sql-engine`: executes SQL for the node that started it, until that ends.
pub(super) async fn run(args: SqlEngineArgs) -> anyhow::Result<i32> {
    let options = serde_json::from_str(&args.options).context("the options of the engine")?;
    // The node tells what it has lost when the connection breaks.
    let _broken = serve_engine(options).await;
    Ok(0)
}
