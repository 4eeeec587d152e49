use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;

/// What is logged where `RUST_LOG` says nothing.
/// openraft warns of every message that does not get through; who is primary and who is reached is said by Skein itself.
const DEFAULT_FILTER: &str = "skein=info,openraft=off,warn";

/// Sends the program's log to stderr; what is logged is `RUST_LOG`'s. A second call changes nothing.
///
/// # Errors
/// Where `RUST_LOG` is no filter.
pub fn init_log(format: LogFormat) -> Result<(), String> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(text) if !text.trim().is_empty() => EnvFilter::try_new(&text)
            .map_err(|e| format!("RUST_LOG {text:?}: {e}; write for example skein=debug,warn"))?,
        _ => EnvFilter::new(DEFAULT_FILTER),
    };
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let _already_set = match format {
        LogFormat::Text => subscriber.try_init(),
        LogFormat::Json => subscriber.json().flatten_event(true).try_init(),
    };
    Ok(())
}
