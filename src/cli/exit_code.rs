//! Exit codes: what a script can tell apart without reading the message.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | failed |
//! | 2 | wrong usage |
//! | 3 | what was waited for has not come in time |
//! | 4 | the node is not primary |
//! | 5 | no quorum of voters answers |
//! | 127 | the command to run does not exist |

use crate::config::ConfigError;
use crate::http::{ClientError, Reason};
use crate::node::NodeError;

/// A time that was waited in vain; the text says for what, and what was there instead.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct TimedOut(pub(super) String);

/// The node does not become primary.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct NotPrimary(pub(super) String);

/// There is no such command.
#[derive(Debug, thiserror::Error)]
#[error("{0} does not exist")]
pub(super) struct NotFound(pub(super) String);

/// The exit code for an error.
pub(super) fn of(error: &anyhow::Error) -> u8 {
    if error.is::<TimedOut>() {
        return 3;
    }
    if error.is::<NotPrimary>() {
        return 4;
    }
    if error.is::<NotFound>() {
        return 127;
    }
    if let Some(ClientError::Refused { reason: Some(reason), .. }) = error.downcast_ref() {
        match reason {
            Reason::Timeout => return 3,
            Reason::NotPrimary => return 4,
            Reason::NoQuorum => return 5,
        }
    }
    match (error.downcast_ref(), error.downcast_ref()) {
        // As a shell says that there is no such command.
        (Some(NodeError::Command { .. }), _) => 127,
        // An option is missing or contradicts another one; a mistake in the configuration file is none of usage.
        (_, Some(ConfigError::Missing { .. } | ConfigError::Invalid(_))) => 2,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_can_tell_apart_what_they_react_to() {
        let refused = |reason| {
            anyhow::Error::from(ClientError::Refused { status: 503, detail: "no".into(), reason })
                .context("while asking")
        };
        assert_eq!(of(&refused(None)), 1);
        assert_eq!(of(&refused(Some(Reason::Timeout))), 3);
        assert_eq!(of(&refused(Some(Reason::NotPrimary))), 4);
        assert_eq!(of(&refused(Some(Reason::NoQuorum))), 5);
        assert_eq!(of(&TimedOut("too late".into()).into()), 3);
        assert_eq!(of(&NotPrimary("no".into()).into()), 4);
        assert_eq!(of(&NotFound("no".into()).into()), 127);
        assert_eq!(of(&ConfigError::Invalid("no".into()).into()), 2);
        assert_eq!(of(&anyhow::anyhow!("no")), 1);
    }
}
