//! Options of `skein run` and `skein lease`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::node_args::NodeArgs;
use crate::config::parse_duration;

const EXAMPLES: &str = "\
Examples:
  On the machine of the primary, or not at all (the same line in the deployment of every machine):
    skein run --if-primary -- bin/rails db:migrate
  Here, whoever is primary now:
    skein run --promote -- bin/rails console
The command takes the place of this one: it gets signals, and its exit code is seen.";

/// `skein run`: exactly one of the first four says where.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct RunArgs {
    #[command(flatten)]
    pub(super) node: NodeArgs,
    /// Wait until this node is primary
    #[arg(long, group = "place", required_unless_present = "place")]
    pub(super) on_primary: bool,
    /// Make this node primary first, as `skein handoff` does
    #[arg(long, group = "place")]
    pub(super) promote: bool,
    /// Where this node is not primary, do nothing: exit code 0
    #[arg(long, group = "place")]
    pub(super) if_primary: bool,
    /// Hold the write lease of a database meanwhile: its name, or its path on the mount of this node (see `skein lease`)
    #[arg(long, group = "place", value_name = "DB")]
    pub(super) with_lease: Option<PathBuf>,
    /// How long to wait, such as 500ms, 30s or 2m
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
    pub(super) timeout: Duration,
    /// The command
    #[arg(last = true, value_name = "CMD", required = true)]
    pub(super) command: Vec<OsString>,
}

/// `skein lease`.
#[derive(Args, Debug)]
pub(super) struct LeaseArgs {
    #[command(flatten)]
    pub(super) node: NodeArgs,
    /// Name of the database, or its path on the mount of this node, a voter
    #[arg(value_name = "DB")]
    pub(super) db: PathBuf,
    /// The command; it takes the place of this one, and gives the lease back when it ends
    #[arg(last = true, value_name = "CMD", required = true)]
    pub(super) command: Vec<OsString>,
}
