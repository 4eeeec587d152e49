use std::fmt::Debug;
use std::io::IsTerminal;

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

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
        LogFormat::Text => subscriber.finish().with(AbandonedRequests).try_init(),
        LogFormat::Json => subscriber.json().flatten_event(true).finish().with(AbandonedRequests).try_init(),
    };
    Ok(())
}

/// Leaves out that a reply did not reach the kernel because nobody waits for it: an application was killed in the middle
/// of a request. fuser logs that as an error. The kernel then says ENOENT (`fs/fuse/dev.c`, fuse_dev_do_write); other numbers
/// are logged.
struct AbandonedRequests;

impl<S: Subscriber> Layer<S> for AbandonedRequests {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let mut is_it = IsAbandoned(false);
        event.record(&mut is_it);
        !is_it.0
    }
}

/// Whether an event's text is fuser's about a reply that nobody waits for.
struct IsAbandoned(bool);

impl Visit for IsAbandoned {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            let text = format!("{value:?}");
            self.0 = text.starts_with("Failed to send FUSE reply") && text.ends_with("(os error 2)");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(data)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reply_that_nobody_waits_for_is_no_error() {
        let written = Written::default();
        let writer = written.clone();
        let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(subscriber.with(AbandonedRequests), || {
            for number in [2, 22] {
                let error = std::io::Error::from_raw_os_error(number);
                tracing::error!("Failed to send FUSE reply: {error}");
            }
            tracing::error!("opening a file: {}", std::io::Error::from_raw_os_error(2));
        });
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        assert!(text.contains("(os error 22)") && text.contains("opening a file"), "{text}");
        assert!(!text.contains("reply: No such file"), "{text}");
    }
}
