//! Options of `skein mount` for SQL over HTTP.

use std::path::PathBuf;

use clap::Args;
use clap::builder::BoolishValueParser;

use crate::config::{PartialSql, Size, Time};

/// Section `[sql]` of the configuration file.
#[derive(Args, Debug)]
pub(super) struct SqlArgs {
    /// Serve SQL over HTTP (Hrana, libSQL's protocol) [default: true]
    #[arg(long, env = "SKEIN_SQL_ENABLED", value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", value_parser = BoolishValueParser::new())]
    sql_enabled: Option<bool>,
    /// Database of requests that name none [default: the only one there is]
    #[arg(long, env = "SKEIN_SQL_DB", value_name = "DB")]
    sql_db: Option<String>,
    /// Let clients that may write make databases that do not exist [default: false]
    #[arg(long, env = "SKEIN_SQL_CREATE", value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", value_parser = BoolishValueParser::new())]
    sql_create: Option<bool>,
    /// Connections to one database at a time [default: 32]
    #[arg(long, env = "SKEIN_SQL_CONNECTIONS", value_name = "NUMBER")]
    sql_connections: Option<u32>,
    /// Streams at a time that wait for their clients [default: 256]
    #[arg(long, env = "SKEIN_SQL_STREAMS", value_name = "NUMBER")]
    sql_streams: Option<u32>,
    /// How long a stream waits for its client [default: 10s]
    #[arg(long, env = "SKEIN_SQL_STREAM_IDLE_TIMEOUT", value_name = "TIME")]
    sql_stream_idle_timeout: Option<Time>,
    /// How long a transaction may take [default: 10s]
    #[arg(long, env = "SKEIN_SQL_TRANSACTION_TIMEOUT", value_name = "TIME")]
    sql_transaction_timeout: Option<Time>,
    /// How long a statement may take [default: 30s]
    #[arg(long, env = "SKEIN_SQL_STATEMENT_TIMEOUT", value_name = "TIME")]
    sql_statement_timeout: Option<Time>,
    /// How long a statement waits for another writer [default: 5s]
    #[arg(long, env = "SKEIN_SQL_BUSY_TIMEOUT", value_name = "TIME")]
    sql_busy_timeout: Option<Time>,
    /// How long a read waits for what its client has seen, before the primary is asked [default: 1s]
    #[arg(long, env = "SKEIN_SQL_TXID_TIMEOUT", value_name = "TIME")]
    sql_txid_timeout: Option<Time>,
    /// How long a write waits for a primary [default: 5s]
    #[arg(long, env = "SKEIN_SQL_PRIMARY_TIMEOUT", value_name = "TIME")]
    sql_primary_timeout: Option<Time>,
    /// Lag from which on reads go to the primary; 0s: none [default: 0s]
    #[arg(long, env = "SKEIN_SQL_MAX_STALENESS", value_name = "TIME")]
    sql_max_staleness: Option<Time>,
    /// Largest body of a request [default: 16MiB]
    #[arg(long, env = "SKEIN_SQL_REQUEST_BYTES", value_name = "SIZE")]
    sql_request_bytes: Option<Size>,
    /// Largest answer, statement and value [default: 16MiB]
    #[arg(long, env = "SKEIN_SQL_RESPONSE_BYTES", value_name = "SIZE")]
    sql_response_bytes: Option<Size>,
    /// Rows of one answer [default: 100000]
    #[arg(long, env = "SKEIN_SQL_RESPONSE_ROWS", value_name = "NUMBER")]
    sql_response_rows: Option<u64>,
    /// Web sites whose pages may ask, such as `https://app.example.com`
    #[arg(long, env = "SKEIN_SQL_CORS_ORIGINS", value_name = "ORIGIN,...", value_delimiter = ',')]
    sql_cors_origins: Option<Vec<String>>,
    /// File with the ed25519 public key of signed tokens (JWT)
    #[arg(long, env = "SKEIN_SQL_JWT_KEY_FILE", value_name = "FILE")]
    sql_jwt_key_file: Option<PathBuf>,
}

impl SqlArgs {
    /// What the command line and the environment say.
    pub(super) fn into_partial(self) -> PartialSql {
        PartialSql {
            enabled: self.sql_enabled,
            db: self.sql_db,
            create: self.sql_create,
            connections: self.sql_connections,
            streams: self.sql_streams,
            stream_idle_timeout: self.sql_stream_idle_timeout,
            transaction_timeout: self.sql_transaction_timeout,
            statement_timeout: self.sql_statement_timeout,
            busy_timeout: self.sql_busy_timeout,
            txid_timeout: self.sql_txid_timeout,
            primary_timeout: self.sql_primary_timeout,
            max_staleness: self.sql_max_staleness,
            request_bytes: self.sql_request_bytes,
            response_bytes: self.sql_response_bytes,
            response_rows: self.sql_response_rows,
            cors_origins: self.sql_cors_origins,
            jwt_key_file: self.sql_jwt_key_file,
        }
    }
}
