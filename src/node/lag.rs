//! How far behind its cluster a node is.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::replication::Replication;
use crate::raft::PrimaryState;
use crate::store::Store;
use crate::stream::PrimaryView;

/// Since when a voter knows no primary whose log it has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Link {
    Never,
    Good,
    Lost(Instant),
}

impl Link {
    fn lag(self) -> Option<Duration> {
        match self {
            Link::Never => None,
            Link::Good => Some(Duration::ZERO),
            Link::Lost(since) => Some(since.elapsed()),
        }
    }

    fn next(self, is_good: bool) -> Self {
        match (self, is_good) {
            (_, true) => Link::Good,
            (Link::Good, false) => Link::Lost(Instant::now()),
            (kept, false) => kept,
        }
    }
}

/// Has the store know how far behind this node is: a replica since when it lacks something, a voter since when it
/// knows no primary.
pub(super) fn tell_lag(
    store: &Store,
    replication: &Arc<Replication>,
    tasks: &TaskTracker,
    shutdown: CancellationToken,
) {
    match &**replication {
        Replication::Replica { follower, .. } => {
            let link = Arc::new(Mutex::new(Link::Never));
            let has_primary = |view: &PrimaryView| view.primary.is_some();
            tasks.spawn(follow(follower.view(), has_primary, link.clone(), shutdown));
            let status = follower.status();
            store.set_lag_source(Box::new(move || {
                let behind = status.borrow().lag()?;
                // In step with a node that has no primary either is in step with the past.
                let lost = link.lock().unwrap_or_else(PoisonError::into_inner).lag();
                Some(behind.max(lost.unwrap_or_default()))
            }));
        }
        Replication::Voter { raft, removed, .. } => {
            let link = Arc::new(Mutex::new(Link::Never));
            let states = raft.watch_primary();
            let has_log = |state: &PrimaryState| state.primary.is_some() && state.resolved;
            tasks.spawn(follow(states, has_log, link.clone(), shutdown));
            let removed = removed.subscribe();
            store.set_lag_source(Box::new(move || {
                // What has come since is not known.
                if removed.borrow().is_some() {
                    return None;
                }
                link.lock().unwrap_or_else(PoisonError::into_inner).lag()
            }));
        }
    }
}

async fn follow<T>(
    mut states: watch::Receiver<T>,
    is_good: impl Fn(&T) -> bool,
    link: Arc<Mutex<Link>>,
    shutdown: CancellationToken,
) {
    loop {
        {
            let mut link = link.lock().unwrap_or_else(PoisonError::into_inner);
            *link = link.next(is_good(&states.borrow_and_update()));
        }
        tokio::select! {
            changed = states.changed() => if changed.is_err() { return },
            () = shutdown.cancelled() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_voter_is_behind_from_the_loss_of_the_primary_on() {
        assert_eq!(Link::Never.next(false).lag(), None);
        let good = Link::Never.next(true);
        assert_eq!(good.lag(), Some(Duration::ZERO));
        let since = good.next(false);
        assert!(matches!(since, Link::Lost(_)));
        assert_eq!(since.next(false), since, "it does not begin anew");
        assert_eq!(since.next(true), Link::Good);
    }
}
