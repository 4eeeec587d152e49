use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{ConfigError, Size, Time};
use crate::types::DbName;

/// Section `[sql]` as one source gives it; key `some_key` is the option `--sql-some-key`.
#[derive(Clone, Default, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PartialSql {
    /// Serve SQL over HTTP.
    pub enabled: Option<bool>,
    /// The database of requests that name none; empty: the only one there is.
    pub db: Option<String>,
    /// Make databases that do not exist.
    pub create: Option<bool>,
    /// Connections to one database at a time.
    pub connections: Option<u32>,
    /// Streams at a time that wait for their clients.
    pub streams: Option<u32>,
    /// How long a stream waits for its client.
    pub stream_idle_timeout: Option<Time>,
    /// How long a transaction may take.
    pub transaction_timeout: Option<Time>,
    /// How long a statement may take.
    pub statement_timeout: Option<Time>,
    /// How long a statement waits for another writer.
    pub busy_timeout: Option<Time>,
    /// How long a read waits for the transaction that its client has seen.
    pub txid_timeout: Option<Time>,
    /// How long a write waits for a primary.
    pub primary_timeout: Option<Time>,
    /// Lag from which on reads go to the primary; zero: none.
    pub max_staleness: Option<Time>,
    /// The largest body of a request.
    pub request_bytes: Option<Size>,
    /// The largest answer, statement and value.
    pub response_bytes: Option<Size>,
    /// Rows of one answer.
    pub response_rows: Option<u64>,
    /// Web sites whose pages may ask.
    pub cors_origins: Option<Vec<String>>,
    /// File with the public key of signed tokens.
    pub jwt_key_file: Option<PathBuf>,
}

impl PartialSql {
    /// These settings, and where they say nothing those of `below`.
    pub fn or(self, below: Self) -> Self {
        Self {
            enabled: self.enabled.or(below.enabled),
            db: self.db.or(below.db),
            create: self.create.or(below.create),
            connections: self.connections.or(below.connections),
            streams: self.streams.or(below.streams),
            stream_idle_timeout: self.stream_idle_timeout.or(below.stream_idle_timeout),
            transaction_timeout: self.transaction_timeout.or(below.transaction_timeout),
            statement_timeout: self.statement_timeout.or(below.statement_timeout),
            busy_timeout: self.busy_timeout.or(below.busy_timeout),
            txid_timeout: self.txid_timeout.or(below.txid_timeout),
            primary_timeout: self.primary_timeout.or(below.primary_timeout),
            max_staleness: self.max_staleness.or(below.max_staleness),
            request_bytes: self.request_bytes.or(below.request_bytes),
            response_bytes: self.response_bytes.or(below.response_bytes),
            response_rows: self.response_rows.or(below.response_rows),
            cors_origins: self.cors_origins.or(below.cors_origins),
            jwt_key_file: self.jwt_key_file.or(below.jwt_key_file),
        }
    }
}

/// The settings of SQL over HTTP, complete and checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SqlSettings {
    /// Whether it is served.
    pub enabled: bool,
    /// The database of requests that name none; `None`: the only one there is.
    pub db: Option<DbName>,
    /// Whether databases that do not exist are made by who may write.
    pub create: bool,
    /// Connections to one database at a time.
    pub connections: u32,
    /// Streams at a time that wait for their clients.
    pub streams: u32,
    /// How long a stream waits for its client.
    pub stream_idle_timeout: Duration,
    /// How long a transaction may take.
    pub transaction_timeout: Duration,
    /// How long a statement may take.
    pub statement_timeout: Duration,
    /// How long a statement waits for another writer, and a request for a connection.
    pub busy_timeout: Duration,
    /// How long a read waits for the transaction that its client has seen, before the primary is asked.
    pub txid_timeout: Duration,
    /// How long a write waits for a primary.
    pub primary_timeout: Duration,
    /// Lag from which on reads go to the primary; `None`: any will do.
    pub max_staleness: Option<Duration>,
    /// The largest body of a request, in bytes.
    pub request_bytes: u64,
    /// The largest answer, statement and value, in bytes.
    pub response_bytes: u64,
    /// Rows of one answer.
    pub response_rows: u64,
    /// Web sites whose pages may ask, such as `https://app.example.com`.
    pub cors_origins: Vec<String>,
    /// File with the public key of signed tokens.
    pub jwt_key_file: Option<PathBuf>,
}

impl SqlSettings {
    /// Fills in the defaults and checks the whole.
    ///
    /// # Errors
    /// Where a value is not acceptable; the key is named.
    pub(super) fn resolve(partial: PartialSql) -> Result<Self, ConfigError> {
        let invalid = |key: &str, why: &str| ConfigError::Invalid(format!("--sql-{key}: {why}"));
        let time = |time: Option<Time>, seconds| time.map_or(Duration::from_secs(seconds), Time::get);
        let size = |size: Option<Size>, mebibytes: u64| size.map_or(mebibytes << 20, Size::bytes);
        let db = partial.db.filter(|name| !name.is_empty());
        let db = db.map(|name| DbName::new(&name).map_err(|error| invalid("db", &error.to_string())));
        let settings = Self {
            enabled: partial.enabled.unwrap_or(true),
            db: db.transpose()?,
            create: partial.create.unwrap_or(false),
            connections: partial.connections.unwrap_or(32),
            streams: partial.streams.unwrap_or(256),
            stream_idle_timeout: time(partial.stream_idle_timeout, 10),
            transaction_timeout: time(partial.transaction_timeout, 10),
            statement_timeout: time(partial.statement_timeout, 30),
            busy_timeout: time(partial.busy_timeout, 5),
            txid_timeout: time(partial.txid_timeout, 1),
            primary_timeout: time(partial.primary_timeout, 5),
            max_staleness: Some(time(partial.max_staleness, 0)).filter(|limit| !limit.is_zero()),
            request_bytes: size(partial.request_bytes, 16),
            response_bytes: size(partial.response_bytes, 16),
            response_rows: partial.response_rows.unwrap_or(100_000),
            cors_origins: partial
                .cors_origins
                .unwrap_or_default()
                .into_iter()
                .filter(|o| !o.is_empty())
                .collect(),
            jwt_key_file: partial.jwt_key_file.filter(|path| !path.as_os_str().is_empty()),
        };
        if settings.connections == 0 || settings.streams == 0 {
            return Err(invalid("connections and --sql-streams", "must be at least 1"));
        }
        for (key, bytes) in
            [("request-bytes", settings.request_bytes), ("response-bytes", settings.response_bytes)]
        {
            if !(1 << 10..=1 << 30).contains(&bytes) {
                return Err(invalid(key, "must be 1KiB to 1GiB"));
            }
        }
        let is_origin = |origin: &String| {
            let host = ["http://", "https://"].iter().find_map(|scheme| origin.strip_prefix(scheme));
            host.is_some_and(|host| !host.is_empty() && !host.contains('/'))
        };
        if !settings.cors_origins.iter().all(is_origin) {
            return Err(invalid(
                "cors-origins",
                "an origin is http:// or https:// and a host, without a path",
            ));
        }
        Ok(settings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_acceptable_is_named() {
        let refusal = |partial| SqlSettings::resolve(partial).unwrap_err().to_string();
        assert!(
            refusal(PartialSql { db: Some("../x".into()), ..PartialSql::default() }).contains("--sql-db")
        );
        assert!(refusal(PartialSql { streams: Some(0), ..PartialSql::default() }).contains("--sql-streams"));
        let large = Some("2GiB".parse().unwrap());
        assert!(refusal(PartialSql { response_bytes: large, ..PartialSql::default() }).contains("1GiB"));
        for origin in ["*", "app.example.com", "https://app.example.com/", "https://"] {
            let cors_origins = Some(vec![origin.to_owned()]);
            assert!(
                refusal(PartialSql { cors_origins, ..PartialSql::default() }).contains("origin"),
                "{origin}"
            );
        }
        assert!(SqlSettings::resolve(PartialSql::default()).unwrap().enabled);
    }
}
