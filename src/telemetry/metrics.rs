//! Every metric of the program: its name, kind, unit and help.

use std::sync::OnceLock;

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

/// Kind of a metric.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// A distribution.
    Histogram,
}

/// One metric.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Its name; the unit comes last.
    pub name: &'static str,
    /// Its kind.
    pub kind: Kind,
    /// Its unit.
    pub unit: Unit,
    /// What it says.
    pub help: &'static str,
}

const fn metric(name: &'static str, kind: Kind, unit: Unit, help: &'static str) -> Metric {
    Metric { name, kind, unit, help }
}

/// 1 on the primary, else 0.
pub const IS_PRIMARY: &str = "skein_is_primary";
/// 1 when applications may use the mount, else 0.
pub const READY: &str = "skein_ready";
/// The Raft term.
pub const TERM: &str = "skein_term";
/// Last log entry applied.
pub const APPLIED_INDEX: &str = "skein_applied_index";
/// Last log entry that a crash cannot take from the database files.
pub const DURABLE_INDEX: &str = "skein_durable_index";
/// Number of databases.
pub const DATABASES: &str = "skein_databases";
/// Number of databases that applications have open.
pub const ATTACHED: &str = "skein_databases_attached";
/// Size of all databases.
pub const DATABASE_BYTES: &str = "skein_databases_size_bytes";
/// Nodes of the cluster this node knows, by role and health.
pub const MEMBERS: &str = "skein_members";
/// Entries a node lacks, by node.
pub const MEMBER_LAG_ENTRIES: &str = "skein_member_lag_entries";
/// How long a node is behind, by node.
pub const MEMBER_LAG_SECONDS: &str = "skein_member_lag_seconds";
/// Transactions that changed a database here.
pub const TRANSACTIONS: &str = "skein_transactions_total";
/// Changes of the primary seen.
pub const PRIMARY_CHANGES: &str = "skein_primary_changes_total";
/// Change sets in `discarded/`.
pub const DISCARDED: &str = "skein_discarded_change_sets";
/// Checkpoints made to move the durable index.
pub const CHECKPOINTS: &str = "skein_checkpoints_total";
/// Checkpoints that failed.
pub const CHECKPOINT_ERRORS: &str = "skein_checkpoint_errors_total";
/// How long those took.
pub const CHECKPOINT_SECONDS: &str = "skein_checkpoint_duration_seconds";
/// HTTP requests, by route and status.
pub const HTTP_REQUESTS: &str = "skein_http_requests_total";
/// How long they took until the answer began, by route.
pub const HTTP_SECONDS: &str = "skein_http_request_duration_seconds";
/// Events that slow readers of `/v1/events` lost.
pub const EVENTS_LOST: &str = "skein_http_events_lost_total";
/// Requests the proxy answered, by kind, by whose application answered, and by status.
pub const PROXY_REQUESTS: &str = "skein_proxy_requests_total";
/// How long they took until the answer began, likewise.
pub const PROXY_SECONDS: &str = "skein_proxy_request_duration_seconds";
/// Requests the proxy answered itself because nobody else could, by reason.
pub const PROXY_REFUSALS: &str = "skein_proxy_refusals_total";
/// How long reads waited for the transaction in their cookie.
pub const PROXY_TXID_WAIT_SECONDS: &str = "skein_proxy_txid_wait_seconds";
/// How long writes waited for a primary.
pub const PROXY_PRIMARY_WAIT_SECONDS: &str = "skein_proxy_primary_wait_seconds";
/// Connections of clients to the proxy.
pub const PROXY_CONNECTIONS: &str = "skein_proxy_connections";

/// All of them, in the order of this file.
pub const ALL: &[Metric] = &[
    metric(IS_PRIMARY, Kind::Gauge, Unit::Count, "1 on the primary, else 0."),
    metric(READY, Kind::Gauge, Unit::Count, "1 when applications may use the mount, else 0."),
    metric(TERM, Kind::Gauge, Unit::Count, "The Raft term."),
    metric(APPLIED_INDEX, Kind::Gauge, Unit::Count, "Last log entry applied."),
    metric(DURABLE_INDEX, Kind::Gauge, Unit::Count, "Last log entry the database files hold durably."),
    metric(DATABASES, Kind::Gauge, Unit::Count, "Number of databases."),
    metric(ATTACHED, Kind::Gauge, Unit::Count, "Number of databases that applications have open."),
    metric(DATABASE_BYTES, Kind::Gauge, Unit::Bytes, "Size of all databases."),
    metric(MEMBERS, Kind::Gauge, Unit::Count, "Nodes of the cluster this node knows."),
    metric(MEMBER_LAG_ENTRIES, Kind::Gauge, Unit::Count, "Log entries a node still lacks."),
    metric(MEMBER_LAG_SECONDS, Kind::Gauge, Unit::Seconds, "How long a node has been behind."),
    metric(TRANSACTIONS, Kind::Counter, Unit::Count, "Change sets that changed a database here."),
    metric(PRIMARY_CHANGES, Kind::Counter, Unit::Count, "Changes of the primary that this node saw."),
    metric(DISCARDED, Kind::Gauge, Unit::Count, "Change sets kept in discarded/ that never became history."),
    metric(CHECKPOINTS, Kind::Counter, Unit::Count, "Checkpoints made so that the log can be purged."),
    metric(CHECKPOINT_ERRORS, Kind::Counter, Unit::Count, "Checkpoints that failed."),
    metric(CHECKPOINT_SECONDS, Kind::Histogram, Unit::Seconds, "How long a checkpoint took."),
    metric(HTTP_REQUESTS, Kind::Counter, Unit::Count, "HTTP requests answered."),
    metric(
        HTTP_SECONDS,
        Kind::Histogram,
        Unit::Seconds,
        "Time from an HTTP request to the begin of its answer.",
    ),
    metric(EVENTS_LOST, Kind::Counter, Unit::Count, "Events that slow readers of /v1/events lost."),
    metric(PROXY_REQUESTS, Kind::Counter, Unit::Count, "Requests that the proxy answered."),
    metric(
        PROXY_SECONDS,
        Kind::Histogram,
        Unit::Seconds,
        "Time from a request to the proxy to the begin of its answer.",
    ),
    metric(
        PROXY_REFUSALS,
        Kind::Counter,
        Unit::Count,
        "Requests that the proxy answered itself because no application could.",
    ),
    metric(
        PROXY_TXID_WAIT_SECONDS,
        Kind::Histogram,
        Unit::Seconds,
        "How long reads waited until this node had the transaction in their cookie.",
    ),
    metric(
        PROXY_PRIMARY_WAIT_SECONDS,
        Kind::Histogram,
        Unit::Seconds,
        "How long writes waited for a primary.",
    ),
    metric(PROXY_CONNECTIONS, Kind::Gauge, Unit::Count, "Connections of clients to the proxy."),
];

/// Upper bounds of the buckets of every distribution, in seconds.
const BUCKETS_SECONDS: &[f64] =
    &[0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0];

/// The metrics as Prometheus reads them.
#[derive(Clone)]
pub struct Exposition {
    handle: PrometheusHandle,
}

impl Exposition {
    /// Makes this program's metrics be collected, once for the whole program.
    pub fn install() -> Self {
        static INSTALLED: OnceLock<Exposition> = OnceLock::new();
        INSTALLED
            .get_or_init(|| {
                let recorder = PrometheusBuilder::new()
                    .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), BUCKETS_SECONDS)
                    .expect("the list of buckets is not empty")
                    .build_recorder();
                let handle = recorder.handle();
                if metrics::set_global_recorder(recorder).is_err() {
                    tracing::warn!("another recorder collects this program's metrics; /metrics stays empty");
                }
                ALL.iter().for_each(describe);
                Exposition { handle }
            })
            .clone()
    }

    /// The text of `GET /metrics`.
    pub fn render(&self) -> String {
        // Distributions are drained into buckets here; without it they would grow between two scrapes.
        self.handle.run_upkeep();
        self.handle.render()
    }
}

fn describe(metric: &Metric) {
    match metric.kind {
        Kind::Counter => describe_counter!(metric.name, metric.unit, metric.help),
        Kind::Gauge => describe_gauge!(metric.name, metric.unit, metric.help),
        Kind::Histogram => describe_histogram!(metric.name, metric.unit, metric.help),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_unique_and_say_what_they_count() {
        let mut seen = HashSet::new();
        for metric in ALL {
            assert!(seen.insert(metric.name), "{} twice", metric.name);
            assert!(metric.name.starts_with("skein_") && metric.help.ends_with('.'), "{}", metric.name);
            assert_eq!(metric.kind == Kind::Counter, metric.name.ends_with("_total"), "{}", metric.name);
            assert_eq!(metric.unit == Unit::Seconds, metric.name.ends_with("_seconds"), "{}", metric.name);
        }
    }

    #[test]
    fn metrics_are_shown_with_their_help_and_buckets() {
        let exposition = Exposition::install();
        metrics::counter!(TRANSACTIONS).increment(3);
        metrics::histogram!(CHECKPOINT_SECONDS).record(0.002);
        let text = exposition.render();
        for line in [
            "# HELP skein_transactions_total Change sets that changed a database here.",
            "# TYPE skein_checkpoint_duration_seconds histogram",
            "skein_checkpoint_duration_seconds_bucket{le=\"0.003\"} 1",
        ] {
            assert!(text.contains(line), "{line:?} is not in\n{text}");
        }
    }
}
