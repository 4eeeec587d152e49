use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What a start does while applications have databases open through the mount of an earlier run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StaleMountMode {
    /// Waits for them for ten seconds, and ends where they have not closed everything by then.
    Wait,
    /// Goes on with copies of those databases, which nobody can open on this node until they are closed.
    #[default]
    Serve,
    /// Ends the applications: SIGTERM, then SIGKILL after five seconds.
    Kill,
}

impl FromStr for StaleMountMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "wait" => Ok(Self::Wait),
            "serve" => Ok(Self::Serve),
            "kill" => Ok(Self::Kill),
            _ => Err(format!("{text:?} is none of wait, serve and kill")),
        }
    }
}

impl fmt::Display for StaleMountMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Wait => "wait",
            Self::Serve => "serve",
            Self::Kill => "kill",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mode_is_read_as_it_is_written() {
        for mode in [StaleMountMode::Wait, StaleMountMode::Serve, StaleMountMode::Kill] {
            assert_eq!(mode.to_string().parse(), Ok(mode));
        }
        assert!("never".parse::<StaleMountMode>().unwrap_err().contains("wait, serve and kill"));
    }
}
