use std::fmt;
use std::str::FromStr;

/// What a node is in the cluster, as configured.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Role {
    /// Member of the Raft group; may become primary.
    Voter,
    /// Follows the stream of committed change sets; never primary.
    Replica,
}

/// A text that is neither `voter` nor `replica`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("role {0:?} is neither voter nor replica")]
pub struct InvalidRole(pub String);

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Voter => "voter",
            Role::Replica => "replica",
        })
    }
}

impl FromStr for Role {
    type Err = InvalidRole;

    fn from_str(text: &str) -> Result<Self, InvalidRole> {
        match text {
            "voter" => Ok(Role::Voter),
            "replica" => Ok(Role::Replica),
            _ => Err(InvalidRole(text.to_owned())),
        }
    }
}

/// What applications of this node may do to its databases right now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Access {
    /// This node is primary: applications write.
    Write,
    /// A voter that is not primary: writers wait (SQLITE_BUSY), because it may become primary.
    Fenced,
    /// A replica: writers get SQLITE_READONLY at once.
    ReadOnly,
}
