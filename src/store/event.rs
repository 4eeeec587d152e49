use tokio::sync::{broadcast, watch};

use super::PrimaryInfo;
use crate::db::Observer;
use crate::types::{DbName, LogIndex, PageSize, Pos};

/// What happened, in order.
#[derive(Clone, Debug)]
pub enum StoreEvent {
    /// A database moved on.
    Tx {
        /// Which.
        db: DbName,
        /// Where it stands now.
        pos: Pos,
        /// Its size in pages.
        commit: u32,
        /// Page size in bytes.
        page_size: PageSize,
        /// When the primary captured it, milliseconds since 1970; 0 where unknown.
        timestamp_ms: i64,
        /// The log entry.
        index: LogIndex,
    },
    /// A database was dropped.
    Dropped(DbName),
    /// Another primary, or none.
    Primary(Option<PrimaryInfo>),
}

/// Passes each step of a database to those who listen and to those who wait.
pub(super) fn observer(events: broadcast::Sender<StoreEvent>, steps: watch::Sender<u64>) -> Observer {
    Box::new(move |database, moved| {
        // Nobody listening is no error.
        let _ = events.send(StoreEvent::Tx {
            db: database.name().clone(),
            pos: moved.pos,
            commit: moved.pages.get(),
            page_size: moved.page_size,
            timestamp_ms: moved.timestamp_ms,
            index: moved.index,
        });
        steps.send_modify(|count| *count += 1);
    })
}
