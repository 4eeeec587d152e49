use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{ConfigError, Time};

/// Where the supervised program runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnlyOn {
    /// On every node, as soon as the mount may be used.
    #[default]
    Any,
    /// On the primary: started when the node becomes it, stopped when it is it no more.
    Primary,
}

/// When a supervised program that ended by itself is started again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// Never: the node ends with it.
    #[default]
    Never,
    /// When its exit code is not 0.
    OnFailure,
    /// Always.
    Always,
}

impl Restart {
    /// Whether a program that ended with this code is started again.
    pub fn again(self, code: i32) -> bool {
        match self {
            Restart::Never => false,
            Restart::OnFailure => code != 0,
            Restart::Always => true,
        }
    }
}

/// Section `[exec]` as one source gives it; key `some_key` is the option `--exec-some-key`.
#[derive(Clone, Default, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PartialExec {
    /// Where the program runs.
    pub only_on: Option<OnlyOn>,
    /// When it is started again.
    pub restart: Option<Restart>,
    /// The longest wait before it is started again.
    pub restart_delay_max: Option<Time>,
    /// How long it has to end.
    pub stop_timeout: Option<Time>,
    /// User that the program runs as.
    pub user: Option<String>,
    /// Shell command to run on the primary before the program starts anywhere.
    pub before: Option<String>,
    /// What that command runs once for.
    pub release: Option<String>,
    /// Shell command to run whenever the node's role or the primary changes.
    pub on_role_change: Option<String>,
}

impl PartialExec {
    /// These settings, and where they say nothing those of `below`.
    pub fn or(self, below: Self) -> Self {
        Self {
            only_on: self.only_on.or(below.only_on),
            restart: self.restart.or(below.restart),
            restart_delay_max: self.restart_delay_max.or(below.restart_delay_max),
            stop_timeout: self.stop_timeout.or(below.stop_timeout),
            user: self.user.or(below.user),
            before: self.before.or(below.before),
            release: self.release.or(below.release),
            on_role_change: self.on_role_change.or(below.on_role_change),
        }
    }
}

/// The longest name of a release, in bytes.
const RELEASE_BYTES_MAX: usize = 200;

/// How the supervised program runs, complete.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Exec {
    /// Where the program runs.
    pub only_on: OnlyOn,
    /// When it is started again.
    pub restart: Restart,
    /// The longest wait before it is started again.
    pub restart_delay_max: Duration,
    /// How long it has to end after SIGTERM before it is killed.
    pub stop_timeout: Duration,
    /// User that the program runs as, by name or number; empty: as the daemon does.
    pub user: String,
    /// Shell command to run on the primary, once for each release, before the program starts anywhere; may be empty.
    pub before: String,
    /// What tells one release of the program from the next.
    pub release: String,
    /// Shell command to run whenever the node's role or the primary changes; may be empty.
    pub on_role_change: String,
}

impl Exec {
    /// The longest wait before the program is started again, unless told otherwise.
    pub const RESTART_DELAY_MAX: Duration = Duration::from_secs(30);
    /// How long the program has to end, unless told otherwise.
    pub const STOP_TIMEOUT: Duration = Duration::from_secs(10);

    /// Fills in the defaults.
    ///
    /// # Errors
    /// Where a time is too short to be meant.
    pub fn resolve(partial: PartialExec) -> Result<Self, ConfigError> {
        let exec = Self {
            only_on: partial.only_on.unwrap_or_default(),
            restart: partial.restart.unwrap_or_default(),
            restart_delay_max: partial.restart_delay_max.map_or(Self::RESTART_DELAY_MAX, Time::get),
            stop_timeout: partial.stop_timeout.map_or(Self::STOP_TIMEOUT, Time::get),
            user: partial.user.unwrap_or_default(),
            before: partial.before.unwrap_or_default(),
            release: partial.release.unwrap_or_default(),
            on_role_change: partial.on_role_change.unwrap_or_default(),
        };
        if !exec.before.is_empty() && exec.release.is_empty() {
            return Err(ConfigError::Invalid(
                "--exec-before runs once for each --exec-release: give what tells one release from the next, as a version or a commit".into(),
            ));
        }
        if exec.release.len() > RELEASE_BYTES_MAX || exec.release.contains(char::is_control) {
            return Err(ConfigError::Invalid("--exec-release must be one line of at most 200 bytes".into()));
        }
        if exec.restart_delay_max < Duration::from_millis(100) {
            return Err(ConfigError::Invalid("--exec-restart-delay-max must be at least 100ms".into()));
        }
        Ok(exec)
    }
}

/// `FromStr` and `Display` in the words of the file.
macro_rules! words {
    ($kind:ty, $what:literal, $($value:path => $word:literal),+) => {
        impl FromStr for $kind {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($word => Ok($value),)+
                    _ => Err(format!("{} {text:?} is none of {}", $what, [$($word),+].join(", "))),
                }
            }
        }

        impl fmt::Display for $kind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $($value => $word),+ })
            }
        }
    };
}

words!(OnlyOn, "the place to run", OnlyOn::Any => "any", OnlyOn::Primary => "primary");
words!(Restart, "the restart policy", Restart::Never => "never", Restart::OnFailure => "on-failure", Restart::Always => "always");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_the_file_are_those_of_the_command_line() {
        for policy in [Restart::Never, Restart::OnFailure, Restart::Always] {
            assert_eq!(policy.to_string().parse::<Restart>().unwrap(), policy);
            assert_eq!(serde_json::to_value(policy).unwrap(), policy.to_string());
        }
        for place in [OnlyOn::Any, OnlyOn::Primary] {
            assert_eq!(place.to_string().parse::<OnlyOn>().unwrap(), place);
            assert_eq!(serde_json::to_value(place).unwrap(), place.to_string());
        }
        assert!("sometimes".parse::<Restart>().unwrap_err().contains("on-failure"));
    }

    #[test]
    fn what_runs_before_needs_to_know_the_release() {
        let before = PartialExec { before: Some("migrate".into()), ..PartialExec::default() };
        assert!(Exec::resolve(before.clone()).unwrap_err().to_string().contains("--exec-release"));
        let two_lines = PartialExec { release: Some("a\nb".into()), ..before.clone() };
        assert!(Exec::resolve(two_lines).unwrap_err().to_string().contains("one line"));
        let exec = Exec::resolve(PartialExec { release: Some("v2".into()), ..before }).unwrap();
        assert_eq!((exec.before.as_str(), exec.release.as_str()), ("migrate", "v2"));
    }

    #[test]
    fn what_ended_well_is_started_again_only_under_always() {
        assert!(!Restart::Never.again(1) && Restart::OnFailure.again(1) && Restart::Always.again(1));
        assert!(!Restart::OnFailure.again(0) && Restart::Always.again(0));
    }
}
