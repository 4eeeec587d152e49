//! Options of `skein history` and `skein branch`.

use clap::{Args, Subcommand};

use super::node_args::NodeArgs;
use crate::types::DbName;

#[derive(Args, Debug)]
pub(super) struct HistoryArgs {
    #[command(flatten)]
    pub(super) node: NodeArgs,
    /// Name of the database, its path below the mount
    pub(super) db: DbName,
    /// Transactions that are shown, the newest first
    #[arg(long, default_value_t = 20, value_name = "COUNT")]
    pub(super) limit: usize,
    /// As JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Args, Debug)]
pub(super) struct BranchArgs {
    #[command(flatten)]
    pub(super) node: NodeArgs,
    /// As JSON
    #[arg(long, global = true)]
    pub(super) json: bool,
    /// Do not ask before a branch is dropped
    #[arg(long, global = true)]
    pub(super) yes: bool,
    #[command(subcommand)]
    pub(super) command: BranchCommand,
}

#[derive(Subcommand, Debug)]
pub(super) enum BranchCommand {
    /// Make a database that begins as another one is, or was
    Create {
        /// The database, or DB@POINT: a transaction, a time, or how long ago ("app.db@5m ago")
        from: String,
        /// Name of the new database
        new: DbName,
    },
    /// Drop a branch on all nodes; any database, as a branch is one
    Drop {
        /// Name of the database
        db: DbName,
    },
}
