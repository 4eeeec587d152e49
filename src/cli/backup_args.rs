//! Options of `skein restore`, `skein backup`, and the section `[backup]`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::node_args::NodeArgs;
use crate::backup::{IntegrityCheck, Location, PARALLEL, Point};
use crate::config::{OneOrMany, PartialBackup, Time, parse_duration};
use crate::types::{DbName, Timestamp, Txid};

/// Section `[backup]` of the configuration file.
#[derive(Args, Debug)]
pub(super) struct BackupArgs {
    /// Back databases up: s3://BUCKET/PATH, gs://BUCKET/PATH, az://CONTAINER/PATH or file:///DIR
    #[arg(long, env = "SKEIN_BACKUP_URL", value_name = "URL,...", value_delimiter = ',')]
    backup_url: Option<Vec<String>>,
    /// Which databases are backed up [default: all]
    #[arg(long, env = "SKEIN_BACKUP_DATABASES", value_name = "GLOB,...", value_delimiter = ',')]
    backup_databases: Option<Vec<String>>,
    /// Changes of so long go into one file of the backup [default: 1s]
    #[arg(long, env = "SKEIN_BACKUP_SYNC_INTERVAL", value_name = "TIME")]
    backup_sync_interval: Option<Time>,
    /// Time between snapshots of a database that changes [default: 24h]
    #[arg(long, env = "SKEIN_BACKUP_SNAPSHOT_INTERVAL", value_name = "TIME")]
    backup_snapshot_interval: Option<Time>,
    /// For how long every point of a database can be restored [default: 168h]
    #[arg(long, env = "SKEIN_BACKUP_RETENTION", value_name = "TIME")]
    backup_retention: Option<Time>,
    /// Warn when the backup is behind for so long [default: 60s]
    #[arg(long, env = "SKEIN_BACKUP_WARN_AFTER", value_name = "TIME")]
    backup_warn_after: Option<Time>,
    /// Restore each database and compare it once in this time; 0s: never [default: 24h]
    #[arg(long, env = "SKEIN_BACKUP_VERIFY_INTERVAL", value_name = "TIME")]
    backup_verify_interval: Option<Time>,
}

impl BackupArgs {
    /// What the command line and the environment say.
    pub(super) fn into_partial(self) -> PartialBackup {
        PartialBackup {
            url: self.backup_url.map(OneOrMany::Many),
            databases: self.backup_databases.map(OneOrMany::Many),
            sync_interval: self.backup_sync_interval,
            snapshot_interval: self.backup_snapshot_interval,
            retention: self.backup_retention,
            warn_after: self.backup_warn_after,
            verify_interval: self.backup_verify_interval,
        }
    }
}

/// A point in time, or a transaction.
#[derive(Args, Debug)]
#[group(multiple = false)]
pub(super) struct PointArgs {
    /// As of this time: 2026-11-28T10:00:00Z, or how long ago, such as 5m [default: the newest point]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    time: Option<Timestamp>,
    /// As of this transaction, 16 hex digits [default: the newest]
    #[arg(long, value_name = "TXID")]
    txid: Option<Txid>,
}

impl PointArgs {
    /// The point that is meant.
    pub(super) fn point(&self) -> Point {
        match (self.time, self.txid) {
            (Some(time), _) => Point::Time(time),
            (None, Some(txid)) => Point::Txid(txid),
            (None, None) => Point::Latest,
        }
    }
}

fn parse_time(text: &str) -> Result<Timestamp, String> {
    match parse_duration(text.trim_end_matches(" ago")) {
        Ok(ago) => {
            let ago = i64::try_from(ago.as_millis()).unwrap_or(i64::MAX);
            Ok(Timestamp::from_ms(Timestamp::now().ms().saturating_sub(ago)))
        }
        Err(_) => text.parse().map_err(|error: crate::types::InvalidTimestamp| format!("{error}, or 5m")),
    }
}

#[derive(Args, Debug)]
pub(super) struct RestoreArgs {
    #[command(flatten)]
    pub(super) node: NodeArgs,
    /// URL of the backup
    #[arg(value_name = "URL")]
    pub(super) from: Location,
    /// Name of the database [default: the only one in the backup]
    pub(super) db: Option<DbName>,
    /// The file to write; it must not exist
    #[arg(short, long, value_name = "FILE", required_unless_present = "into", conflicts_with = "into")]
    pub(super) output: Option<PathBuf>,
    /// Make it the content of this database of the cluster at --url, as one transaction
    #[arg(long, value_name = "DB")]
    pub(super) into: Option<DbName>,
    #[command(flatten)]
    pub(super) point: PointArgs,
    /// Files fetched at a time
    #[arg(long, value_name = "N", default_value_t = PARALLEL, value_parser = parse_parallel)]
    pub(super) parallel: usize,
    /// What SQLite is asked about the result before it is put in place
    #[arg(long, value_name = "none|quick|full", default_value = "quick")]
    pub(super) integrity_check: IntegrityCheck,
}

fn parse_parallel(text: &str) -> Result<usize, String> {
    const MAX: usize = 64;
    text.parse().ok().filter(|count| (1..=MAX).contains(count)).ok_or_else(|| format!("give 1 to {MAX}"))
}

#[derive(Args, Debug)]
pub(super) struct BackupCommandArgs {
    #[command(flatten)]
    pub(super) node: NodeArgs,
    #[command(subcommand)]
    pub(super) command: BackupCommand,
}

#[derive(Subcommand, Debug)]
pub(super) enum BackupCommand {
    /// Show how far the backups of a running cluster are
    Status {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Wait until the bucket has all that is committed in a database now
    Wait {
        /// Name of the database, its path below the mount
        db: DbName,
        /// How long to wait, such as 500ms, 30s or 2m
        #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_duration)]
        timeout: Duration,
    },
    /// List the databases of a backup, or the points of one of them
    List {
        /// URL of the backup
        #[arg(value_name = "BACKUP")]
        from: Location,
        /// Name of the database
        db: Option<DbName>,
    },
    /// Restore databases into a scratch file, and compare them with what the cluster had
    Verify {
        /// URL of the backup
        #[arg(value_name = "BACKUP")]
        from: Location,
        /// Name of the database [default: all]
        db: Option<DbName>,
    },
}
