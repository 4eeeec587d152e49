//! What is asked of the cluster as a whole, over gRPC.

mod client;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod server;

pub use client::{OtherVoter, RemoteCluster};
pub use server::ClusterServer;
pub(super) use server::cluster_service;

use std::time::Duration;

use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

use crate::store::{ClusterError, Member, Standing};
use crate::types::Role;

/// Generated from `proto/cluster.proto`.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub(super) mod wire {
    tonic::include_proto!("skein.cluster.v1");
}

const KIND: &str = "skein-error";
const PRIMARY: &str = "skein-primary";

fn to_status(error: &ClusterError) -> Status {
    match error {
        ClusterError::NotPrimary(primary) => {
            let mut status = Status::new(Code::FailedPrecondition, error.to_string());
            status.metadata_mut().insert(KIND, MetadataValue::from_static("not-primary"));
            if let Some(Ok(value)) = primary.as_deref().map(MetadataValue::try_from) {
                status.metadata_mut().insert(PRIMARY, value);
            }
            status
        }
        ClusterError::Refused(_) => Status::new(Code::InvalidArgument, error.to_string()),
        ClusterError::Removed(_) => {
            let mut status = Status::new(Code::InvalidArgument, error.to_string());
            status.metadata_mut().insert(KIND, MetadataValue::from_static("removed"));
            status
        }
        ClusterError::NoQuorum(why) => {
            let mut status = Status::new(Code::Unavailable, why.clone());
            status.metadata_mut().insert(KIND, MetadataValue::from_static("no-quorum"));
            status
        }
        ClusterError::Unavailable(_) => Status::new(Code::Unavailable, error.to_string()),
    }
}

fn from_status(status: &Status) -> ClusterError {
    let detail = |key| status.metadata().get(key).and_then(|value| value.to_str().ok());
    let text: String = status.message().chars().take(500).collect();
    match (status.code(), detail(KIND)) {
        (Code::FailedPrecondition, Some("not-primary")) => {
            ClusterError::NotPrimary(detail(PRIMARY).map(ToOwned::to_owned))
        }
        (Code::Unavailable, Some("no-quorum")) => ClusterError::NoQuorum(text),
        (Code::InvalidArgument, Some("removed")) => ClusterError::Removed(text),
        (Code::InvalidArgument | Code::FailedPrecondition | Code::Unauthenticated, _) => {
            ClusterError::Refused(text)
        }
        _ => ClusterError::Unavailable(text),
    }
}

fn member_to_wire(member: &Member) -> wire::Member {
    let standing = match member.standing {
        Standing::Votes => wire::member::Standing::Votes,
        Standing::Joining => wire::member::Standing::Joining,
        Standing::Standby => wire::member::Standing::Standby,
        Standing::Follows => wire::member::Standing::Follows,
    };
    wire::Member {
        name: member.name.to_string(),
        addr: member.addr.clone(),
        healthy: member.healthy,
        lag_ms: member.lag.map(|lag| u64::try_from(lag.as_millis()).unwrap_or(u64::MAX)),
        lag_entries: member.lag_entries,
        standing: standing.into(),
    }
}

fn member_from_wire(member: wire::Member) -> Result<Member, ClusterError> {
    let (standing, role) = match member.standing() {
        wire::member::Standing::Votes => (Standing::Votes, Role::Voter),
        wire::member::Standing::Joining => (Standing::Joining, Role::Voter),
        wire::member::Standing::Standby => (Standing::Standby, Role::Voter),
        wire::member::Standing::Follows | wire::member::Standing::Unknown => {
            (Standing::Follows, Role::Replica)
        }
    };
    let name =
        member.name.parse().map_err(|_| ClusterError::Unavailable("a member without a name".into()))?;
    Ok(Member {
        name,
        role,
        addr: member.addr,
        healthy: member.healthy,
        lag: member.lag_ms.map(Duration::from_millis),
        lag_entries: member.lag_entries,
        standing,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_survive_the_wire() {
        for error in [
            ClusterError::NotPrimary(None),
            ClusterError::NotPrimary(Some("10.0.0.1:20203".into())),
            ClusterError::Refused("no".into()),
            ClusterError::Removed("let it in".into()),
            ClusterError::NoQuorum("1 of 3 voters".into()),
            ClusterError::Unavailable("later".into()),
        ] {
            assert_eq!(from_status(&to_status(&error)), error);
        }
    }

    #[test]
    fn members_survive_the_wire() {
        for (standing, role) in [
            (Standing::Votes, Role::Voter),
            (Standing::Joining, Role::Voter),
            (Standing::Standby, Role::Voter),
            (Standing::Follows, Role::Replica),
        ] {
            let member = Member {
                name: "n1".parse().unwrap(),
                role,
                addr: "h:1".into(),
                healthy: true,
                lag: Some(Duration::from_millis(7)),
                lag_entries: 3,
                standing,
            };
            assert_eq!(member_from_wire(member_to_wire(&member)).unwrap(), member);
        }
    }
}
