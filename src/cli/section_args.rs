//! Options of `skein mount` that are sections of the configuration file.

use clap::Args;

use crate::config::{OnlyOn, PartialExec, PartialHistory, PartialLimits, PartialTraces, Restart, Size, Time};

/// Section `[exec]` of the configuration file.
#[derive(Args, Debug)]
pub(super) struct ExecArgs {
    /// Where CMD runs: on every node, or only while the node is primary [default: any]
    #[arg(long, env = "SKEIN_EXEC_ONLY_ON", value_name = "any|primary")]
    exec_only_on: Option<OnlyOn>,
    /// When CMD is started again after it has ended by itself [default: never]
    #[arg(long, env = "SKEIN_EXEC_RESTART", value_name = "never|on-failure|always")]
    exec_restart: Option<Restart>,
    /// The longest wait before CMD is started again [default: 30s]
    #[arg(long, env = "SKEIN_EXEC_RESTART_DELAY_MAX", value_name = "TIME")]
    exec_restart_delay_max: Option<Time>,
    /// How long CMD has to end after SIGTERM before it is killed [default: 10s]
    #[arg(long, env = "SKEIN_EXEC_STOP_TIMEOUT", value_name = "TIME")]
    exec_stop_timeout: Option<Time>,
    /// User that CMD runs as, a name or a number; others than the daemon's imply --allow-other [default: the daemon's]
    #[arg(long, env = "SKEIN_EXEC_USER", value_name = "USER")]
    exec_user: Option<String>,
    /// Shell command that has to end well on the primary, once for each --exec-release, before CMD starts anywhere
    #[arg(long, env = "SKEIN_EXEC_BEFORE", value_name = "COMMAND")]
    exec_before: Option<String>,
    /// What tells one release of CMD from the next, as a version or a commit
    #[arg(long, env = "SKEIN_EXEC_RELEASE", value_name = "TEXT")]
    exec_release: Option<String>,
    /// Shell command to run when the node's role or the primary changes
    #[arg(long, env = "SKEIN_EXEC_ON_ROLE_CHANGE", value_name = "COMMAND")]
    exec_on_role_change: Option<String>,
}

impl ExecArgs {
    /// What the command line and the environment say.
    pub(super) fn into_partial(self) -> PartialExec {
        PartialExec {
            only_on: self.exec_only_on,
            restart: self.exec_restart,
            restart_delay_max: self.exec_restart_delay_max,
            stop_timeout: self.exec_stop_timeout,
            user: self.exec_user,
            before: self.exec_before,
            release: self.exec_release,
            on_role_change: self.exec_on_role_change,
        }
    }
}

/// Section `[traces]` of the configuration file.
#[derive(Args, Debug)]
pub(super) struct TraceArgs {
    /// Trace commits: URL of a collector that takes OTLP over gRPC, such as http://127.0.0.1:4317
    #[arg(long, env = "SKEIN_TRACES_ENDPOINT", value_name = "URL")]
    traces_endpoint: Option<String>,
    /// Share of the commits that are traced, 0 to 1 [default: 1]
    #[arg(long, env = "SKEIN_TRACES_SHARE", value_name = "SHARE")]
    traces_share: Option<f64>,
}

impl TraceArgs {
    /// What the command line and the environment say.
    pub(super) fn into_partial(self) -> PartialTraces {
        PartialTraces { endpoint: self.traces_endpoint, share: self.traces_share }
    }
}

/// Section `[limits]` of the configuration file.
#[derive(Args, Debug)]
pub(super) struct LimitArgs {
    /// What a database may have committed beyond the log before its writers wait [default: 64MiB]
    #[arg(long, env = "SKEIN_LIMITS_UNCOMMITTED", value_name = "SIZE")]
    limits_uncommitted: Option<Size>,
    /// Disk space below which commits are refused; at most a twentieth of the disk [default: 64MiB]
    #[arg(long, env = "SKEIN_LIMITS_DISK_RESERVE", value_name = "SIZE")]
    limits_disk_reserve: Option<Size>,
    /// Log kept for nodes that lag behind, its large change sets included [default: 256MiB]
    #[arg(long, env = "SKEIN_LIMITS_LOG_KEEP", value_name = "SIZE")]
    limits_log_keep: Option<Size>,
    /// How long it is kept at most [default: 24h]
    #[arg(long, env = "SKEIN_LIMITS_LOG_KEEP_AGE", value_name = "TIME")]
    limits_log_keep_age: Option<Time>,
    /// Time between two comparisons of the databases with their checksums; 0s: only at the start [default: 24h]
    #[arg(long, env = "SKEIN_LIMITS_SCRUB_EVERY", value_name = "TIME")]
    limits_scrub_every: Option<Time>,
    /// How long an application's write lease (DB-lock) keeps the primary where it is [default: 30s]
    #[arg(long, env = "SKEIN_LIMITS_WRITE_LEASE", value_name = "TIME")]
    limits_write_lease: Option<Time>,
}

impl LimitArgs {
    /// What the command line and the environment say.
    pub(super) fn into_partial(self) -> PartialLimits {
        PartialLimits {
            uncommitted: self.limits_uncommitted,
            disk_reserve: self.limits_disk_reserve,
            log_keep: self.limits_log_keep,
            log_keep_age: self.limits_log_keep_age,
            scrub_every: self.limits_scrub_every,
            write_lease: self.limits_write_lease,
        }
    }
}

/// Section `[history]` of the configuration file.
#[derive(Args, Debug)]
pub(super) struct HistorySectionArgs {
    /// For how long every point of a database is kept on each node; 0s: none [default: 1h]
    #[arg(long, env = "SKEIN_HISTORY_KEEP", value_name = "TIME")]
    history_keep: Option<Time>,
    /// What that may take on a node; the oldest points go first [default: 1GiB]
    #[arg(long, env = "SKEIN_HISTORY_BYTES", value_name = "SIZE")]
    history_bytes: Option<Size>,
}

impl HistorySectionArgs {
    /// What the command line and the environment say.
    pub(super) fn into_partial(self) -> PartialHistory {
        PartialHistory { keep: self.history_keep, bytes: self.history_bytes }
    }
}
