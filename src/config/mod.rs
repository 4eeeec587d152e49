//! The settings of a node: configuration file, command line and environment, made one and checked.
//!
//! Owns the keys, their defaults and their rules. Never reads the command line itself: `cli` hands it in as a
//! [`Partial`], with the environment already in it. Called by `cli`.

mod backup;
mod duration;
mod error;
mod exec;
mod expand;
mod file;
mod history;
mod host_port;
mod limits;
mod log_format;
mod mount;
mod proxy;
mod security;
mod settings;
mod sql;
mod stale_mount;
mod token_texts;
mod traces;

pub use backup::{BackupSettings, PartialBackup};
pub use duration::{Time, parse_duration};
pub use error::ConfigError;
pub use exec::{Exec, OnlyOn, PartialExec, Restart};
pub use file::{Partial, load};
pub use history::{HistorySettings, PartialHistory};
pub use host_port::HostPort;
pub use limits::{LimitSettings, PartialLimits, Size};
pub use log_format::LogFormat;
pub use mount::{FileMode, Owner};
pub use proxy::{OneOrMany, ProxyPartial, ProxySettings};
pub use security::Security;
pub use settings::Settings;
pub use sql::{PartialSql, SqlSettings};
pub use stale_mount::StaleMountMode;
pub use token_texts::TokenTexts;
pub use traces::{PartialTraces, TraceSettings};
