//! How new what this node has is.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::oneshot;

use super::Store;
use crate::types::{Access, DbName, Txid};

/// Tells how long ago this node had everything; `None` where it never had.
pub type LagSource = Box<dyn Fn() -> Option<Duration> + Send + Sync>;

/// The connection to who knows.
#[derive(Default)]
pub(super) struct Lag(OnceLock<LagSource>);

impl Store {
    /// Connects who knows how far behind this node is; until then it counts as never in step.
    pub fn set_lag_source(&self, source: LagSource) {
        // Connected once, at the start.
        let _ = self.lag.0.set(source);
    }

    /// How long ago this node had everything; `None` where it never had. Zero on the primary.
    pub fn lag(&self) -> Option<Duration> {
        match self.access() {
            Access::Write => Some(Duration::ZERO),
            _ => self.lag.0.get().and_then(|source| source()),
        }
    }

    /// The last transaction of a database, once everything that applications of this node have committed by now has a
    /// TXID and is held by a quorum; `None` where it has none.
    ///
    /// With `synchronous=NORMAL` a commit returns before it has one.
    pub async fn committed(self: Arc<Self>, name: DbName) -> Option<Txid> {
        let database = self.get(&name)?;
        if self.access() == Access::Write {
            let (sender, captured) = oneshot::channel();
            let capturing = database.clone();
            // It waits for the lock of the database.
            let asked = tokio::task::spawn_blocking(move || {
                capturing.capture_committed(Box::new(move |answer| drop(sender.send(answer))));
            });
            // What cannot be captured has no TXID, and its application was told or will be.
            let _ = asked.await;
            let _ = captured.await;
        }
        database.pos().txid
    }
}
