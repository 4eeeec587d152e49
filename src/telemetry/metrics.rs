//! Every metric of the program: its name, kind, unit, labels and help.
//!
//! Names are LiteFS's behind `litefs_` where the meaning is the same.

use std::sync::OnceLock;
use std::time::Duration;

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use metrics_util::MetricKindMask;

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

impl Kind {
    /// Prometheus' word for it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
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
    /// Its labels.
    pub labels: &'static [&'static str],
    /// What it says.
    pub help: &'static str,
}

/// Declares the names and the list of all metrics.
macro_rules! metrics {
    ($($constant:ident $name:literal $kind:ident $unit:ident [$($label:literal),*] $help:literal;)+) => {
        $(#[doc = $help] pub const $constant: &str = $name;)+

        /// All of them, in the order of this file.
        pub const ALL: &[Metric] = &[$(Metric {
            name: $name,
            kind: Kind::$kind,
            unit: Unit::$unit,
            labels: &[$($label),*],
            help: $help,
        }),+];
    };
}

metrics! {
    IS_PRIMARY "skein_is_primary" Gauge Count [] "1 on the primary, else 0.";
    QUORUM "skein_quorum" Gauge Count [] "1 while this node hears of a primary that a quorum answers, else 0: nothing can be written.";
    READY "skein_ready" Gauge Count [] "1 when applications may use the mount, else 0.";
    BUILD_INFO "skein_build_info" Gauge Count ["version"] "1, with the version of the program.";
    UPTIME "skein_uptime_seconds" Gauge Seconds [] "How long the node has run.";
    CERTIFICATE_LEFT "skein_certificate_expiry_seconds" Gauge Seconds [] "How long the node's certificate still counts, 0 where it has expired; left out where it has none.";
    COPY_BYTES "skein_copy_bytes" Gauge Bytes [] "Of a first copy or a resync under way: bytes that are in place; 0 while there is none.";
    COPY_TOTAL_BYTES "skein_copy_total_bytes" Gauge Bytes [] "Of a first copy or a resync under way: bytes of the databases that are compared; 0 while there is none.";
    TERM "skein_term" Gauge Count [] "The Raft term.";
    APPLIED_INDEX "skein_applied_index" Gauge Count [] "Last log entry applied.";
    DURABLE_INDEX "skein_durable_index" Gauge Count [] "Last log entry the database files hold durably.";
    DATABASES "skein_db_count" Gauge Count [] "Number of databases.";
    ATTACHED "skein_databases_attached" Gauge Count [] "Number of databases that applications have open.";
    FAILED "skein_databases_failed" Gauge Count [] "Number of databases that are not served, because the copy here is not what the log or its checksums say.";
    HELD "skein_databases_held" Gauge Count [] "Number of databases that cannot be opened here, because applications have them open through the mount of an earlier run.";
    DATABASE_BYTES "skein_databases_size_bytes" Gauge Bytes [] "Size of all databases.";
    DB_TXID "skein_db_txid" Gauge Count ["db"] "Last transaction of a database; left out where a node has more than 500.";
    DB_BYTES "skein_db_size_bytes" Gauge Bytes ["db"] "Size of a database; left out where a node has more than 500.";
    MEMBERS "skein_members" Gauge Count ["role", "healthy"] "Nodes of the cluster this node knows.";
    MEMBER_LAG_ENTRIES "skein_member_lag_entries" Gauge Count ["node"] "Log entries a node still lacks.";
    MEMBER_LAG_SECONDS "skein_member_lag_seconds" Gauge Seconds ["node"] "How long a node has been behind.";
    LAG_SECONDS "skein_lag_seconds" Gauge Seconds [] "How long this node has been behind; 0 on the primary.";
    SUBSCRIBERS "skein_subscriber_count" Gauge Count [] "Replicas that this node knows to follow the cluster now.";
    TRANSACTIONS "skein_transactions_total" Counter Count [] "Change sets that changed a database here.";
    CAPTURE_SECONDS "skein_capture_duration_seconds" Histogram Seconds [] "Time to make a change set of what a database committed here.";
    COMMIT_SECONDS "skein_commit_duration_seconds" Histogram Seconds [] "Time from the begin of the capture to the application's answer.";
    QUORUM_SECONDS "skein_quorum_duration_seconds" Histogram Seconds [] "Time from Raft's taking a change set to a quorum's having it.";
    LOG_SYNC_SECONDS "skein_log_sync_duration_seconds" Histogram Seconds [] "Time of a sync of the Raft log to disk.";
    APPLY_SECONDS "skein_apply_duration_seconds" Histogram Seconds [] "Time to apply another node's log entry to the databases here.";
    APPLY_LAG_SECONDS "skein_apply_lag_seconds" Histogram Seconds [] "Age of another node's transaction when it is visible here, by the clocks of both.";
    FAILOVER_SECONDS "skein_failover_duration_seconds" Histogram Seconds [] "Time from giving up the former primary to knowing the next one.";
    FENCE_LATE_SECONDS "skein_fence_lateness_seconds" Histogram Seconds [] "Time from the end of a primary's lease to the fence's being up in every database in which no writer was at work.";
    LEASES_HELD "skein_leases_held" Gauge Count [] "Write leases that applications of this node hold.";
    LEASE_WAIT_SECONDS "skein_lease_wait_seconds" Histogram Seconds [] "Time until an application had the write lease.";
    LEASE_REFUSED "skein_lease_refused_total" Counter Count [] "Write leases that were not given, or not in time.";
    HANDOFF_SECONDS "skein_handoff_duration_seconds" Histogram Seconds [] "Time of a planned move of the primary, from the fence to the successor's election.";
    PRIMARY_CHANGES "skein_primary_changes_total" Counter Count [] "Changes of the primary that this node saw.";
    DISCARDED "skein_discarded_change_sets" Gauge Count [] "Change sets kept in discarded/ that never became history.";
    CHECKPOINTS "skein_checkpoints_total" Counter Count [] "Checkpoints made so that the log can be purged.";
    CHECKPOINT_ERRORS "skein_checkpoint_errors_total" Counter Count [] "Checkpoints that failed.";
    CHECKPOINT_SECONDS "skein_checkpoint_duration_seconds" Histogram Seconds [] "How long a checkpoint took.";
    BACKPRESSURE_WAITS "skein_backpressure_waits_total" Counter Count [] "Times that a database's writers were made to wait until the log had caught up, or for disk space.";
    BACKPRESSURE_SECONDS "skein_backpressure_seconds_total" Counter Seconds [] "How long they were made to wait, in whole seconds over all databases.";
    DISK_FREE "skein_disk_free_bytes" Gauge Bytes [] "Disk space left for the data directory.";
    LOG_BYTES "skein_log_bytes" Gauge Bytes [] "What the files of the Raft log take.";
    BLOB_BYTES "skein_blob_bytes" Gauge Bytes [] "What the large change sets that the log names take.";
    DISK_REFUSALS "skein_disk_refusals_total" Counter Count [] "Writes refused because the disk is nearly full.";
    HTTP_REQUESTS "skein_http_requests_total" Counter Count ["method", "route", "status"] "HTTP requests answered.";
    HTTP_SECONDS "skein_http_request_duration_seconds" Histogram Seconds ["route"] "Time from an HTTP request to the begin of its answer.";
    EVENTS_LOST "skein_http_events_lost_total" Counter Count [] "Events that slow readers of /v1/events lost.";
    BACKUP_LAG_SECONDS "skein_backup_lag_seconds" Gauge Seconds [] "For how long something committed has not been in the bucket; 0 where this node does not upload.";
    BACKUP_UPLOADED_BYTES "skein_backup_uploaded_bytes_total" Counter Bytes [] "Bytes of change sets and snapshots stored in the bucket.";
    BACKUP_SNAPSHOTS "skein_backup_snapshots_total" Counter Count [] "Snapshots stored in the bucket.";
    BACKUP_ERRORS "skein_backup_errors_total" Counter Count [] "Attempts to bring the bucket up to date that failed.";
    BACKUP_VERIFIED "skein_backup_verified_timestamp_seconds" Gauge Seconds [] "When a database was last restored from the bucket and found equal, in seconds since 1970.";
    BACKUP_VERIFY_FAILURES "skein_backup_verify_failures_total" Counter Count [] "Databases that could not be restored from the bucket, or were found different.";
    PROXY_REQUESTS "skein_proxy_requests_total" Counter Count ["kind", "served_by", "status"] "Requests that the proxy answered.";
    PROXY_SECONDS "skein_proxy_request_duration_seconds" Histogram Seconds ["kind", "served_by"] "Time from a request to the proxy to the begin of its answer.";
    PROXY_REFUSALS "skein_proxy_refusals_total" Counter Count ["reason"] "Requests that the proxy answered itself because no application could.";
    PROXY_TXID_WAIT_SECONDS "skein_proxy_txid_wait_seconds" Histogram Seconds [] "How long reads waited until this node had the transaction in their cookie.";
    PROXY_PRIMARY_WAIT_SECONDS "skein_proxy_primary_wait_seconds" Histogram Seconds [] "How long writes waited for a primary.";
    PROXY_CONNECTIONS "skein_proxy_connections" Gauge Count [] "Connections of clients to the proxy.";
    SQL_REQUESTS "skein_sql_requests_total" Counter Count ["kind", "status"] "Requests of SQL over HTTP that this node answered, also those that the primary did.";
    SQL_SECONDS "skein_sql_request_duration_seconds" Histogram Seconds ["kind"] "Time from a request of SQL over HTTP to the begin of its answer.";
}

/// Upper bounds of the buckets of every distribution, in seconds.
const BUCKETS_SECONDS: &[f64] =
    &[0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0];
/// How often samples of distributions are put into their buckets; until then each takes 8 bytes.
pub const UPKEEP_EVERY: Duration = Duration::from_secs(5);
/// A gauge that nobody has set for so long is of something that is gone, such as a database.
const GONE_AFTER: Duration = Duration::from_secs(600);

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
                    .idle_timeout(MetricKindMask::GAUGE, Some(GONE_AFTER))
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
        self.upkeep();
        self.handle.render()
    }

    /// Puts samples into their buckets, see [`UPKEEP_EVERY`].
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }
}

/// Tells its help, and lets it be shown before it first moves, where it has no labels.
fn describe(metric: &Metric) {
    match metric.kind {
        Kind::Counter => describe_counter!(metric.name, metric.unit, metric.help),
        Kind::Gauge => describe_gauge!(metric.name, metric.unit, metric.help),
        Kind::Histogram => describe_histogram!(metric.name, metric.unit, metric.help),
    }
    if !metric.labels.is_empty() {
        return;
    }
    match metric.kind {
        Kind::Counter => metrics::counter!(metric.name).absolute(0),
        Kind::Gauge => metrics::gauge!(metric.name).set(0.0),
        Kind::Histogram => drop(metrics::histogram!(metric.name)),
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
            let base = metric.name.trim_end_matches("_total");
            assert_eq!(metric.unit == Unit::Seconds, base.ends_with("_seconds"), "{}", metric.name);
            assert_eq!(metric.unit == Unit::Bytes, base.ends_with("_bytes"), "{}", metric.name);
        }
    }

    #[test]
    fn every_metric_has_its_row_in_the_documentation_and_every_row_its_metric() {
        let page = include_str!("../docs/metrics.md");
        let rows: Vec<_> = page.lines().filter(|line| line.starts_with("| `skein_")).collect();
        for metric in ALL {
            let (name, kind, help) = (metric.name, metric.kind.name(), metric.help);
            let labels = metric.labels.join(", ");
            let row = format!("| `{name}` | {kind} | {labels} | {help} |");
            assert!(rows.contains(&row.as_str()), "src/docs/metrics.md lacks\n{row}");
        }
        assert_eq!(rows.len(), ALL.len(), "src/docs/metrics.md has rows of metrics that do not exist");
    }

    #[test]
    fn the_grafana_dashboard_names_only_metrics_that_exist_and_all_that_matter() {
        let text = include_str!("../../examples/grafana.json");
        let dashboard: serde_json::Value = serde_json::from_str(text).unwrap();
        let mut expressions = Vec::new();
        collect(&dashboard, &mut expressions);
        let mut shown = HashSet::new();
        for word in
            expressions.iter().flat_map(|text| text.split(|c: char| !(c.is_alphanumeric() || c == '_')))
        {
            let Some(metric) = word.starts_with("skein_").then(|| known(word)) else { continue };
            shown.insert(metric.unwrap_or_else(|| panic!("{word} is no metric")).name);
        }
        let histograms = ALL.iter().filter(|metric| metric.kind == Kind::Histogram);
        let missing: Vec<_> = histograms.filter(|metric| !shown.contains(metric.name)).collect();
        assert!(missing.is_empty() && shown.len() * 4 > ALL.len() * 3, "{missing:?} are not shown");
    }

    fn collect(value: &serde_json::Value, out: &mut Vec<String>) {
        match value {
            serde_json::Value::Object(map) => map.iter().for_each(|(key, value)| match value.as_str() {
                Some(text) if key == "expr" || key == "query" => out.push(text.to_owned()),
                _ => collect(value, out),
            }),
            serde_json::Value::Array(all) => all.iter().for_each(|value| collect(value, out)),
            _ => {}
        }
    }

    fn known(word: &str) -> Option<&'static Metric> {
        ALL.iter().find(|metric| match metric.kind {
            Kind::Histogram => {
                ["_bucket", "_sum", "_count"].iter().any(|end| word == format!("{}{end}", metric.name))
            }
            Kind::Counter | Kind::Gauge => word == metric.name,
        })
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
            "skein_handoff_duration_seconds_count 0",
        ] {
            assert!(text.contains(line), "{line:?} is not in\n{text}");
        }
    }
}
