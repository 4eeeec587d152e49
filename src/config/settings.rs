use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use super::{
    BackupSettings, ConfigError, Exec, HistorySettings, HostPort, LimitSettings, OnlyOn, Partial,
    ProxySettings, Security, SqlSettings, StaleMountMode, Time, TraceSettings,
};
use crate::types::{ForcedAttributes, Globs, NodeName, Role};

/// The settings of a node, complete and checked.
#[derive(Clone, PartialEq, Debug)]
pub struct Settings {
    /// Directory the databases appear in; absolute.
    pub mount: PathBuf,
    /// Directory the node keeps everything in; absolute, neither inside nor around `mount`.
    pub data: PathBuf,
    /// The node's name.
    pub name: NodeName,
    /// What the node is in the cluster.
    pub role: Role,
    /// Where gRPC between nodes listens.
    pub listen: HostPort,
    /// Where the API and the metrics listen.
    pub http: HostPort,
    /// The gRPC address other nodes dial; `None`: the one it listens at.
    pub advertise: Option<HostPort>,
    /// The URL of the API that others are told; `None`: from the address it listens at.
    pub advertise_http: Option<String>,
    /// Found a new cluster of one voter.
    pub bootstrap: bool,
    /// How many voters found a new cluster together, this one included; 0: none do.
    pub bootstrap_expect: u32,
    /// URL of a backup that the new cluster's databases are restored from.
    pub restore_from: Option<String>,
    /// Addresses of nodes to join.
    pub join: Vec<HostPort>,
    /// Use kernel passthrough where it is to be had.
    pub passthrough: bool,
    /// Let other users into the mount.
    pub allow_other: bool,
    /// Owner and permissions that files have on this node's mount, whatever the log says.
    pub forced: ForcedAttributes,
    /// How often a primary says that it is there.
    pub heartbeat: Duration,
    /// Silence of the primary after which another one may be elected.
    pub election_timeout: Duration,
    /// How long a commit may wait for a quorum.
    pub commit_timeout: Duration,
    /// How long a call of this program may take before the node counts as stuck.
    pub stuck_timeout: Duration,
    /// What a start does while applications use the mount of an earlier run.
    pub stale_mount: StaleMountMode,
    /// Databases that are read-only on a voter that is not primary; elsewhere writers wait.
    pub readonly_on_follower: Option<Globs>,
    /// Who may speak to the node.
    pub security: Security,
    /// Program to run once applications may start, with its arguments; may be empty.
    pub command: Vec<String>,
    /// The proxy in front of the application, where there is one.
    pub proxy: Option<ProxySettings>,
    /// How that program runs.
    pub exec: Exec,
    /// What bounds writers.
    pub limits: LimitSettings,
    /// Whom commits are traced for.
    pub traces: TraceSettings,
    /// SQL over HTTP.
    pub sql: SqlSettings,
    /// Where databases are backed up to, and how.
    pub backup: BackupSettings,
    /// What is kept of earlier states of databases.
    pub history: HistorySettings,
}

impl Settings {
    /// Where gRPC listens unless told otherwise.
    pub const LISTEN: &str = "127.0.0.1:20203";
    /// Where HTTP listens unless told otherwise.
    pub const HTTP: &str = "127.0.0.1:20202";
    /// How often a primary says that it is there, unless told otherwise.
    pub const HEARTBEAT: Duration = Duration::from_millis(100);
    /// How long its silence is borne, unless told otherwise.
    pub const ELECTION_TIMEOUT: Duration = Duration::from_millis(220);
    /// How long a commit may wait, unless told otherwise.
    pub const COMMIT_TIMEOUT: Duration = Duration::from_secs(5);
    /// How long a call may take, unless told otherwise.
    pub const STUCK_TIMEOUT: Duration = Duration::from_secs(10);

    /// Fills in the defaults and checks the whole; `hostname` is the machine's, the default of the node's name.
    ///
    /// # Errors
    /// Where `mount` or `data` is missing, or values are not acceptable or contradict each other.
    pub fn resolve(partial: Partial, hostname: &str) -> Result<Self, ConfigError> {
        let security = Security::resolve(&partial)?;
        let forced = super::mount::forced_attributes(
            (partial.mount_uid.as_ref(), partial.mount_gid.as_ref()),
            (partial.mount_file_mode, partial.mount_dir_mode),
        )?;
        let invalid = ConfigError::Invalid;
        let missing = |option, env| ConfigError::Missing { option, env, key: option };
        let mount = absolute(partial.mount.ok_or(missing("mount", "SKEIN_MOUNT"))?, "mount")?;
        let data = absolute(partial.data.ok_or(missing("data", "SKEIN_DATA"))?, "data")?;
        if mount.starts_with(&data) || data.starts_with(&mount) {
            return Err(invalid(format!(
                "--mount {} and --data {} lie in each other: choose two separate directories",
                mount.display(),
                data.display()
            )));
        }
        let name = match partial.name {
            Some(name) if !name.is_empty() => name.parse().map_err(|e| invalid(format!("--name: {e}")))?,
            _ => hostname
                .parse()
                .map_err(|_| invalid(format!("the hostname {hostname:?} cannot name a node: give --name")))?,
        };
        let role: Role = match partial.role {
            Some(role) => role.parse().map_err(|e| invalid(format!("--role: {e}")))?,
            None => Role::Voter,
        };
        let default = |text: &str| text.parse().expect("a constant address is well-formed");
        let settings = Self {
            mount,
            data,
            name,
            role,
            listen: partial.listen.unwrap_or_else(|| default(Self::LISTEN)),
            http: partial.http.unwrap_or_else(|| default(Self::HTTP)),
            advertise: partial.advertise,
            advertise_http: partial.advertise_http.map(|url| url.trim_end_matches('/').to_owned()),
            bootstrap: partial.bootstrap.unwrap_or(false),
            bootstrap_expect: partial.bootstrap_expect.unwrap_or(0),
            restore_from: partial.restore_from.filter(|url| !url.is_empty()),
            join: partial.join.unwrap_or_default(),
            passthrough: !partial.no_passthrough.unwrap_or(false),
            allow_other: partial.allow_other.unwrap_or(false),
            forced,
            heartbeat: partial.heartbeat.map_or(Self::HEARTBEAT, Time::get),
            election_timeout: partial.election_timeout.map_or(Self::ELECTION_TIMEOUT, Time::get),
            commit_timeout: partial.commit_timeout.map_or(Self::COMMIT_TIMEOUT, Time::get),
            stuck_timeout: partial.stuck_timeout.map_or(Self::STUCK_TIMEOUT, Time::get),
            stale_mount: partial.stale_mount.unwrap_or_default(),
            readonly_on_follower: patterns(partial.readonly_on_follower.unwrap_or_default())?,
            security,
            command: partial.command.unwrap_or_default(),
            proxy: ProxySettings::resolve(partial.proxy)?,
            exec: Exec::resolve(partial.exec)?,
            limits: LimitSettings::resolve(&partial.limits),
            traces: TraceSettings::resolve(partial.traces)?,
            sql: SqlSettings::resolve(partial.sql)?,
            backup: BackupSettings::resolve(partial.backup)?,
            history: HistorySettings::resolve(&partial.history),
        };
        settings.check()?;
        Ok(settings)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let refuse = |why: &str| Err(ConfigError::Invalid(why.to_owned()));
        if self.bootstrap && self.role == Role::Replica {
            return refuse("--bootstrap founds a cluster of one voter: leave out --role replica");
        }
        if self.bootstrap && !self.join.is_empty() {
            return refuse(
                "--bootstrap founds a new cluster and --join enters an existing one: give one of them",
            );
        }
        self.check_founding()?;
        if self.restore_from.as_ref().is_some_and(|url| self.backup.urls.contains(url)) {
            return refuse(
                "--restore-from and --backup-url are the same: the new cluster needs a path of its own for its backup",
            );
        }
        if self.heartbeat < Duration::from_millis(10) || self.heartbeat * 2 > self.election_timeout {
            return refuse("--heartbeat must be at least 10ms and at most half of --election-timeout");
        }
        if self.commit_timeout < self.election_timeout {
            return refuse("--commit-timeout must not be shorter than --election-timeout");
        }
        if self.stuck_timeout < self.election_timeout * 2 {
            return refuse(
                "--stuck-timeout must be at least twice --election-timeout, the lease of a primary",
            );
        }
        self.security.check(&self.listen, &self.http)?;
        if self.exec.only_on == OnlyOn::Primary && self.role == Role::Replica {
            return refuse(
                "--exec-only-on primary: a replica never becomes primary; leave out one of the two",
            );
        }
        if !self.exec.before.is_empty() && self.command.is_empty() {
            return refuse(
                "--exec-before runs before a command, and none is given: add -- CMD, or use skein run --on-primary",
            );
        }
        if self.listen == self.http && self.listen.port() != 0 {
            return refuse("--listen and --http are the same address: give them different ports");
        }
        if self.advertise.as_ref().is_some_and(|a| a.is_unspecified() || a.port() == 0) {
            return refuse("--advertise must be an address that other nodes can dial, not a wildcard");
        }
        if let Some(url) = &self.advertise_http
            && !(url.starts_with("http://") || url.starts_with("https://"))
        {
            return refuse("--advertise-http must be a URL that starts with http:// or https://");
        }
        Ok(())
    }
}

impl Settings {
    /// Whether voters that are started alike can found a cluster together.
    fn check_founding(&self) -> Result<(), ConfigError> {
        let (expect, given) = (self.bootstrap_expect as usize, self.join.len());
        let refuse = |why: String| Err(ConfigError::Invalid(why));
        if expect == 0 {
            return Ok(());
        }
        if self.bootstrap {
            return refuse(
                "--bootstrap founds a cluster alone and --bootstrap-expect with others: give one of them"
                    .into(),
            );
        }
        if expect > 9 || expect.is_multiple_of(2) {
            return refuse(format!(
                "--bootstrap-expect {expect}: found a cluster with 1, 3, 5, 7 or 9 voters; an even number bears the loss of no more than one less does"
            ));
        }
        // With more a part of them could found a cluster, and the rest another one.
        if given > expect || given + 1 < expect {
            return refuse(format!(
                "--bootstrap-expect {expect} wants the addresses of these {expect} voters in --join, with or without this node's own, and {given} are given"
            ));
        }
        Ok(())
    }
}

/// The databases that `patterns` name; `None` where there are none.
fn patterns(patterns: Vec<String>) -> Result<Option<Globs>, ConfigError> {
    let patterns: Vec<String> = patterns.into_iter().filter(|pattern| !pattern.is_empty()).collect();
    if patterns.is_empty() {
        return Ok(None);
    }
    let globs = Globs::new(patterns);
    globs.map(Some).map_err(|error| ConfigError::Invalid(format!("--readonly-on-follower: {error}")))
}

/// The path from the root, `.` and `..` resolved as text, so that two spellings of one directory compare equal.
fn absolute(path: PathBuf, option: &str) -> Result<PathBuf, ConfigError> {
    if path.as_os_str().is_empty() {
        return Err(ConfigError::Invalid(format!("--{option} is empty: give a directory")));
    }
    let path = std::path::absolute(&path)
        .map_err(|e| ConfigError::Invalid(format!("--{option} {}: {e}", path.display())))?;
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => {
                clean.pop();
            }
            other => clean.push(other),
        }
    }
    if clean == Path::new("/") {
        return Err(ConfigError::Invalid(format!("--{option} is the root directory: give another one")));
    }
    Ok(clean)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minimal() -> Partial {
        Partial { mount: Some("/m".into()), data: Some("/d".into()), ..Partial::default() }
    }

    fn refusal(partial: Partial) -> String {
        Settings::resolve(partial, "host").unwrap_err().to_string()
    }

    #[test]
    fn what_is_missing_and_what_contradicts_is_said() {
        assert!(refusal(Partial { mount: None, ..minimal() }).starts_with("--mount is missing"));
        assert!(refusal(Partial { data: None, ..minimal() }).contains("SKEIN_DATA"));
        assert!(
            refusal(Partial { data: Some("/m/../m/x".into()), ..minimal() }).contains("lie in each other")
        );
        let join = Some(vec!["h:1".parse().unwrap()]);
        let boot = Partial { bootstrap: Some(true), ..minimal() };
        assert!(refusal(Partial { join, ..boot.clone() }).contains("--join"));
        let from = Some("file:///b".to_owned());
        let url = from.clone().map(crate::config::OneOrMany::One);
        let backup = crate::config::PartialBackup { url, ..Default::default() };
        let same = Partial { restore_from: from, backup, ..boot.clone() };
        assert!(refusal(same).contains("a path of its own"));
        assert!(refusal(Partial { role: Some("replica".into()), ..boot }).contains("--role"));
        assert!(refusal(Partial { role: Some("leader".into()), ..minimal() }).contains("--role"));
        assert!(refusal(Partial { name: Some("a b".into()), ..minimal() }).contains("--name"));
        assert!(
            refusal(Partial { advertise: Some("0.0.0.0:1".parse().unwrap()), ..minimal() }).contains("dial")
        );
        let founders = |expect, given: &str| Partial {
            bootstrap_expect: Some(expect),
            join: Some(given.split(' ').map(|addr| addr.parse().unwrap()).collect()),
            ..minimal()
        };
        assert!(refusal(founders(4, "a:1 b:1 c:1 d:1")).contains("even"));
        assert!(refusal(founders(3, "a:1")).contains("1 are given"));
        assert!(refusal(founders(3, "a:1 b:1 c:1 d:1")).contains("4 are given"));
        assert!(
            refusal(Partial { bootstrap: Some(true), join: None, ..founders(1, "a:1") }).contains("alone")
        );
        for given in ["a:1 b:1", "a:1 b:1 c:1"] {
            assert_eq!(Settings::resolve(founders(3, given), "host").unwrap().bootstrap_expect, 3);
        }
        let slow = Partial { heartbeat: Some("1s".parse().unwrap()), ..minimal() };
        assert!(refusal(slow).contains("--election-timeout"));
        let short = Partial { commit_timeout: Some("1ms".parse().unwrap()), ..minimal() };
        assert!(refusal(short).contains("--commit-timeout"));
        assert!(refusal(Partial { advertise_http: Some("h:1".into()), ..minimal() }).contains("http://"));
    }

    #[test]
    fn defaults_are_those_of_the_documentation() {
        let unnamed = Partial { name: Some(String::new()), ..minimal() };
        let settings = Settings::resolve(unnamed, "host-1").unwrap();
        assert_eq!(settings.name.as_str(), "host-1");
        assert_eq!(settings.role, Role::Voter);
        assert_eq!(settings.listen.to_string(), "127.0.0.1:20203");
        assert_eq!(settings.http.to_string(), "127.0.0.1:20202");
        assert!(settings.passthrough && !settings.bootstrap && !settings.allow_other);
        assert!(Settings::resolve(minimal(), "bad host").unwrap_err().to_string().contains("--name"));
    }
}
