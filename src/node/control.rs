//! What is asked of the cluster as a whole: done here where this node is primary, passed on where it is not.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::proxy::WriteGate;
use crate::raft::RaftNode;
use crate::rpc::RemoteCluster;
use crate::store::{
    Candidate, ClusterAnswer, ClusterControl, ClusterError, Member, MemberChange, Standing, Store,
};
use crate::stream::Serving;
use crate::types::{DbName, NodeName, Pos};

/// A planned move of the primary, and who waits for it.
pub(super) struct HandoffOrder {
    /// Who shall be primary; `None`: whoever is the least behind.
    pub(super) to: Option<NodeName>,
    /// Hears of the outcome.
    pub(super) done: oneshot::Sender<Result<NodeName, ClusterError>>,
}

/// What a voter does itself.
pub(super) struct VoterControl {
    pub(super) raft: Arc<RaftNode>,
    pub(super) store: Arc<Store>,
    pub(super) serving: Arc<Serving>,
    pub(super) handoffs: mpsc::Sender<HandoffOrder>,
    /// Through which the proxy lets writes in.
    pub(super) gate: WriteGate,
    /// How long a planned move waits for those that are inside.
    pub(super) drain_timeout: Duration,
}

/// How long a promotion is waited for.
const PROMOTION_MAX: Duration = Duration::from_secs(30);

impl ClusterControl for VoterControl {
    fn enlist(&self, candidate: Candidate) -> ClusterAnswer<'_, ()> {
        Box::pin(self.raft.enlist(candidate))
    }

    fn change_member(&self, change: MemberChange) -> ClusterAnswer<'_, ()> {
        Box::pin(async move {
            self.raft.change_member(change.clone()).await?;
            match change {
                MemberChange::Promote(name) => self.wait_voting(&name).await,
                MemberChange::Remove(_) | MemberChange::Demote(_) => Ok(()),
            }
        })
    }

    fn hand_off(&self, to: Option<NodeName>) -> ClusterAnswer<'_, NodeName> {
        Box::pin(async move {
            self.raft.check_handoff(to.as_ref())?;
            // Before the databases are fenced: what an application has begun, it ends here.
            let _closed = self.gate.pause(self.drain_timeout).await;
            let (done, answer) = oneshot::channel();
            let ending = || ClusterError::Unavailable("the node is shutting down".into());
            self.handoffs.send(HandoffOrder { to, done }).await.map_err(|_| ending())?;
            answer.await.map_err(|_| ending())?
        })
    }

    fn newest(&self, db: DbName) -> ClusterAnswer<'_, Pos> {
        Box::pin(async move {
            self.raft.confirm_leading().await?;
            Ok(self.store.get(&db).map_or(Pos::ZERO, |database| database.pos()))
        })
    }

    fn members(&self) -> ClusterAnswer<'_, Vec<Member>> {
        Box::pin(async move {
            self.raft.check_leading()?;
            Ok(with_followers(self.raft.members(), self.serving.members()))
        })
    }
}

impl VoterControl {
    async fn wait_voting(&self, name: &NodeName) -> Result<(), ClusterError> {
        let mut states = self.raft.watch_primary();
        let votes = || {
            let members = self.raft.members();
            members.iter().any(|member| member.name == *name && member.standing == Standing::Votes)
        };
        let waited = tokio::time::timeout(PROMOTION_MAX, async {
            while !votes() {
                // The deadline of this node as primary moves with every heartbeat.
                if states.changed().await.is_err() {
                    return;
                }
            }
        });
        let late = || {
            ClusterError::Unavailable(format!(
                "{name} does not vote yet: it votes once it is close behind and the number of voters stays odd"
            ))
        };
        waited.await.map_err(|_| late())
    }
}

/// Members and those who follow a node, each once.
pub(super) fn with_followers(mut members: Vec<Member>, followers: Vec<Member>) -> Vec<Member> {
    let new = |m: &Member| !members.iter().any(|known| known.name == m.name);
    let followers: Vec<_> = followers.into_iter().filter(new).collect();
    members.extend(followers);
    members
}

/// The cluster as this node's operator reaches it.
pub(super) struct Control {
    /// This node, where it is a voter.
    pub(super) local: Option<Arc<VoterControl>>,
    /// The others.
    pub(super) remote: Arc<RemoteCluster>,
}

/// Asks this node, then the others.
macro_rules! local_or_remote {
    ($self:ident.$method:ident($($argument:expr),*)) => {
        Box::pin(async move {
            if let Some(local) = &$self.local {
                match local.$method($($argument.clone()),*).await {
                    Err(ClusterError::NotPrimary(_)) => {}
                    answer => return answer,
                }
            }
            $self.remote.$method($($argument),*).await
        })
    };
}

impl ClusterControl for Control {
    fn enlist(&self, candidate: Candidate) -> ClusterAnswer<'_, ()> {
        local_or_remote!(self.enlist(candidate))
    }

    fn change_member(&self, change: MemberChange) -> ClusterAnswer<'_, ()> {
        local_or_remote!(self.change_member(change))
    }

    fn hand_off(&self, to: Option<NodeName>) -> ClusterAnswer<'_, NodeName> {
        local_or_remote!(self.hand_off(to))
    }

    fn newest(&self, db: DbName) -> ClusterAnswer<'_, Pos> {
        local_or_remote!(self.newest(db))
    }

    fn members(&self) -> ClusterAnswer<'_, Vec<Member>> {
        local_or_remote!(self.members())
    }
}
