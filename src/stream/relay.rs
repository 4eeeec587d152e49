use futures::{Stream, StreamExt};
use tokio::sync::mpsc;

use super::StreamError;

/// Passes what arrives on to the thread that stores it, and gives what came of it there.
///
/// `store` receives until `None`: the end is said aloud, so that a transfer cut short does not look like a complete one.
///
/// # Errors
/// That of the stream, or what `store` says.
pub(super) async fn relay<T, R>(
    mut arriving: impl Stream<Item = Result<T, StreamError>> + Unpin,
    in_flight: usize,
    store: impl FnOnce(mpsc::Receiver<Option<T>>) -> Result<R, StreamError> + Send + 'static,
) -> Result<R, StreamError>
where
    T: Send + 'static,
    R: Send + 'static,
{
    let (sender, receiver) = mpsc::channel(in_flight);
    let stored = tokio::task::spawn_blocking(move || store(receiver));
    let mut failed = None;
    while let Some(item) = arriving.next().await {
        match item {
            Ok(item) => {
                if sender.send(Some(item)).await.is_err() {
                    // Nobody receives any more: the storing side says why.
                    break;
                }
            }
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    if failed.is_none() {
        let _ = sender.send(None).await;
    }
    drop(sender);
    let stored = stored.await.map_err(|_| StreamError::ShuttingDown)?;
    failed.map_or(stored, Err)
}
