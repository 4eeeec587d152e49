//! openraft's watch channel for tests: tokio's, but those who wait are woken in the order they began to.
//!
//! Tokio spreads them over several queues by chance of its own, which no seed reaches.

use std::pin::pin;
use std::sync::Arc;

use futures::FutureExt;
use openraft::async_runtime::watch;
use openraft::{OptionalSend, base::OptionalSync};
use tokio::sync::{Notify, watch as tokio_watch};

/// The kind of channel.
pub struct OrderedWatch;

/// The end that changes the value.
pub struct Sender<T> {
    /// Taken when dropped.
    value: Option<tokio_watch::Sender<T>>,
    waiting: Arc<Notify>,
}

/// The end that waits for changes.
pub struct Receiver<T> {
    value: tokio_watch::Receiver<T>,
    waiting: Arc<Notify>,
}

impl<T> Sender<T> {
    fn value(&self) -> &tokio_watch::Sender<T> {
        self.value.as_ref().unwrap()
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self { value: self.value.clone(), waiting: self.waiting.clone() }
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        Self { value: self.value.clone(), waiting: self.waiting.clone() }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        // The last one's end is a change, too.
        self.value = None;
        self.waiting.notify_waiters();
    }
}

impl watch::Watch for OrderedWatch {
    type Sender<T: OptionalSend + OptionalSync> = Sender<T>;
    type Receiver<T: OptionalSend + OptionalSync> = Receiver<T>;
    type Ref<'a, T: OptionalSend + 'a> = tokio_watch::Ref<'a, T>;

    fn channel<T: OptionalSend + OptionalSync>(init: T) -> (Sender<T>, Receiver<T>) {
        let (sender, value) = tokio_watch::channel(init);
        let waiting = Arc::new(Notify::new());
        (Sender { value: Some(sender), waiting: waiting.clone() }, Receiver { value, waiting })
    }
}

impl<T: OptionalSend + OptionalSync> watch::WatchSender<OrderedWatch, T> for Sender<T> {
    fn send(&self, value: T) -> Result<(), watch::SendError<T>> {
        let sent = self.value().send(value).map_err(|refused| watch::SendError(refused.0));
        self.waiting.notify_waiters();
        sent
    }

    fn send_if_modified<F>(&self, modify: F) -> bool
    where
        F: FnOnce(&mut T) -> bool,
    {
        let modified = self.value().send_if_modified(modify);
        if modified {
            self.waiting.notify_waiters();
        }
        modified
    }

    fn borrow_watched(&self) -> tokio_watch::Ref<'_, T> {
        self.value().borrow()
    }

    fn subscribe(&self) -> Receiver<T> {
        Receiver { value: self.value().subscribe(), waiting: self.waiting.clone() }
    }
}

impl<T: OptionalSend + OptionalSync> watch::WatchReceiver<OrderedWatch, T> for Receiver<T> {
    async fn changed(&mut self) -> Result<(), watch::RecvError> {
        loop {
            let waiting = self.waiting.clone();
            let mut woken = pin!(waiting.notified());
            woken.as_mut().enable();
            // Asked once, without waiting: tokio knows what counts as a change.
            let now = tokio::task::unconstrained(self.value.changed()).now_or_never();
            if let Some(changed) = now {
                return changed.map_err(|_| watch::RecvError(()));
            }
            woken.await;
        }
    }

    fn borrow_watched(&self) -> tokio_watch::Ref<'_, T> {
        self.value.borrow()
    }

    fn borrow_and_update(&mut self) -> tokio_watch::Ref<'_, T> {
        self.value.borrow_and_update()
    }
}
