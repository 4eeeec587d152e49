//! openraft as this node runs it, and changes of the members through it.

use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::error::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::{ChangeMembers, Raft};

use super::state_machine::StateMachine;
use super::types::{Peer, TypeConfig};

/// openraft with our types.
pub(super) type RaftHandle = Raft<TypeConfig, StateMachine>;

/// How long an operator waits for a change to take place.
const CHANGE_MAX: Duration = Duration::from_secs(30);

/// Changes the members, behind any other change.
///
/// # Errors
/// Where this node does not lead, or no quorum confirms it in time.
pub(super) async fn change_membership(
    raft: &RaftHandle,
    change: ChangeMembers<u64, Peer>,
    retain: bool,
) -> Result<(), String> {
    let (mut server, mut data) = (raft.server_metrics(), raft.data_metrics());
    let changed = async {
        loop {
            server.borrow_and_update();
            data.borrow_and_update();
            match raft.change_membership(change.clone(), retain).await {
                Ok(_) => return Ok(()),
                // One at a time. The end of the other one changes the members, or no more than what is committed.
                Err(error) if is_another_under_way(&error) => {
                    let more = tokio::select! {
                        changed = server.changed() => changed,
                        changed = data.changed() => changed,
                    };
                    more.map_err(|_| error.to_string())?;
                }
                Err(error) => return Err(error.to_string()),
            }
        }
    };
    let late = |_| Err(format!("no quorum confirmed the change within {} s", CHANGE_MAX.as_secs()));
    tokio::time::timeout(CHANGE_MAX, changed).await.unwrap_or_else(late)
}

fn is_another_under_way(error: &RaftError<TypeConfig, ClientWriteError<TypeConfig>>) -> bool {
    use ChangeMembershipError::{InProgress, UncommittedLeaderLog};
    matches!(
        error.api_error(),
        Some(ClientWriteError::ChangeMembershipError(InProgress(_) | UncommittedLeaderLog(_)))
    )
}
