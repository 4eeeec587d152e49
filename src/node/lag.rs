//! How far behind its cluster a node is.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::replication::Replication;
use crate::raft::PrimaryState;
use crate::store::Store;

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

    fn next(self, state: &PrimaryState) -> Self {
        match (self, state.primary.is_some() && state.resolved) {
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
            let status = follower.status();
            store.set_lag_source(Box::new(move || status.borrow().lag()));
        }
        Replication::Voter { raft, removed, .. } => {
            let link = Arc::new(Mutex::new(Link::Never));
            let states = raft.watch_primary();
            tasks.spawn(follow(states, link.clone(), shutdown));
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

async fn follow(
    mut states: watch::Receiver<PrimaryState>,
    link: Arc<Mutex<Link>>,
    shutdown: CancellationToken,
) {
    loop {
        {
            let mut link = link.lock().unwrap_or_else(PoisonError::into_inner);
            *link = link.next(&states.borrow_and_update());
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
        let primary = crate::store::PrimaryInfo { name: "a".into(), addr: "a:1".into(), http: String::new() };
        let lost = PrimaryState::default();
        let there = PrimaryState { primary: Some(primary), resolved: true, ..PrimaryState::default() };
        assert_eq!(Link::Never.next(&lost).lag(), None);
        let good = Link::Never.next(&there);
        assert_eq!(good.lag(), Some(Duration::ZERO));
        let since = good.next(&lost);
        assert!(matches!(since, Link::Lost(_)));
        assert_eq!(since.next(&lost), since, "it does not begin anew");
        assert_eq!(since.next(&PrimaryState { resolved: false, ..there.clone() }), since);
        assert_eq!(since.next(&there), Link::Good);
    }
}
