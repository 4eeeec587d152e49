use futures::future::BoxFuture;

use super::{Candidate, ClusterError, Member, MemberChange, Preparation};
use crate::types::{DbName, NodeName, Pos};

/// An answer that may take long.
pub type ClusterAnswer<'a, T> = BoxFuture<'a, Result<T, ClusterError>>;

/// What can be asked of the cluster as a whole; the primary does it, others say where it is.
pub trait ClusterControl: Send + Sync + 'static {
    /// Makes a node a member, or notes its new addresses.
    fn enlist(&self, candidate: Candidate) -> ClusterAnswer<'_, ()>;

    /// Changes the part a member has, and waits until it is so.
    fn change_member(&self, change: MemberChange) -> ClusterAnswer<'_, ()>;

    /// Moves the primary as planned; gives the new one.
    fn hand_off(&self, to: Option<NodeName>) -> ClusterAnswer<'_, NodeName>;

    /// The newest committed position of a database, confirmed by a quorum.
    fn newest(&self, db: DbName) -> ClusterAnswer<'_, Pos>;

    /// How far the primary is with what its application needs done once for each release.
    fn preparation(&self) -> ClusterAnswer<'_, Preparation>;

    /// The nodes as the primary sees them.
    fn members(&self) -> ClusterAnswer<'_, Vec<Member>>;
}
