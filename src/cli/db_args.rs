//! Options of `skein db`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::node_args::NodeArgs;
use crate::types::{DbName, PointInTime};

#[derive(Args, Debug)]
pub(super) struct DbArgs {
    #[command(flatten)]
    pub(super) node: NodeArgs,
    /// As JSON
    #[arg(long, global = true)]
    pub(super) json: bool,
    /// Do not ask before a database is dropped or replaced
    #[arg(long, global = true)]
    pub(super) yes: bool,
    #[command(subcommand)]
    pub(super) command: DbCommand,
}

#[derive(Subcommand, Debug)]
pub(super) enum DbCommand {
    /// List the databases
    List,
    /// Write a consistent copy of a database to a file, or of all to a directory
    Export {
        /// All databases, each under its own name below DIR
        #[arg(long, value_name = "DIR", conflicts_with_all = ["db", "file"])]
        all: Option<PathBuf>,
        /// As it was: a transaction (16 hex digits), a time (RFC 3339), or how long ago ("5m ago")
        #[arg(long, value_name = "POINT", conflicts_with = "all")]
        at: Option<PointInTime>,
        /// What is written: the database file, or SQL statements that make it
        #[arg(long, value_enum, value_name = "FORMAT", default_value_t = ExportFormat::Sqlite)]
        format: ExportFormat,
        /// Name of the database, its path below the mount
        #[arg(required_unless_present = "all")]
        db: Option<DbName>,
        /// The file; replaced where it exists; - is stdout
        #[arg(required_unless_present = "all")]
        file: Option<PathBuf>,
    },
    /// Make a database what it was at an earlier point, by a new transaction
    Rewind {
        /// Name of the database, its path below the mount
        db: DbName,
        /// A transaction (16 hex digits), a time (RFC 3339), or how long ago ("5m ago")
        #[arg(long, value_name = "POINT")]
        to: PointInTime,
    },
    /// Show the pages and tables in which a database differs between two points
    Diff {
        /// Name of the database, its path below the mount
        db: DbName,
        /// One point: a transaction, a time, or how long ago
        from: PointInTime,
        /// The other point
        to: PointInTime,
    },
    /// Make a database file the content of a database, as one transaction
    Import {
        /// The file
        file: PathBuf,
        /// Name of the database, its path below the mount
        db: DbName,
    },
    /// Read databases on all nodes and compare their checksums
    Verify {
        /// Name of the database, its path below the mount [default: all]
        db: Option<DbName>,
        /// Let nodes whose copy is wrong fetch what differs
        #[arg(long)]
        repair: bool,
    },
    /// Drop a database on all nodes
    Drop {
        /// Name of the database, its path below the mount
        db: DbName,
    },
}

/// What an export writes.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ExportFormat {
    /// A SQLite database file
    Sqlite,
    /// SQL statements
    Sql,
}
