use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::{
    ConfigError, FileMode, HostPort, LogFormat, Owner, PartialBackup, PartialExec, PartialHistory,
    PartialLimits, PartialSql, PartialTraces, ProxyPartial, StaleMountMode, Time, TokenTexts, expand,
};

/// Settings as one source gives them: the file, or the command line together with the environment.
///
/// A key `some_key` is the option `--some-key` and the environment variable `SKEIN_SOME_KEY`.
#[derive(Clone, Default, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Partial {
    /// Directory the databases appear in.
    pub mount: Option<PathBuf>,
    /// Directory the node keeps everything in.
    pub data: Option<PathBuf>,
    /// The node's name.
    pub name: Option<String>,
    /// `voter` or `replica`.
    pub role: Option<String>,
    /// Where gRPC between nodes listens.
    pub listen: Option<HostPort>,
    /// Where the API and the metrics listen.
    pub http: Option<HostPort>,
    /// The gRPC address other nodes dial.
    pub advertise: Option<HostPort>,
    /// The URL of the API that others are told.
    pub advertise_http: Option<String>,
    /// Found a new cluster of one voter.
    pub bootstrap: Option<bool>,
    /// Found a new cluster together with others, of this many voters.
    pub bootstrap_expect: Option<u32>,
    /// URL of a backup that the new cluster's databases are restored from.
    pub restore_from: Option<String>,
    /// Addresses of nodes to join.
    pub join: Option<Vec<HostPort>>,
    /// Do without kernel passthrough.
    pub no_passthrough: Option<bool>,
    /// Let other users into the mount.
    pub allow_other: Option<bool>,
    /// Owner that everything on the mount has on this node.
    pub mount_uid: Option<Owner>,
    /// Group that everything on the mount has on this node.
    pub mount_gid: Option<Owner>,
    /// Permissions that all files on the mount have on this node.
    pub mount_file_mode: Option<FileMode>,
    /// Permissions that all directories on the mount have on this node.
    pub mount_dir_mode: Option<FileMode>,
    /// How often a primary says that it is there.
    pub heartbeat: Option<Time>,
    /// Silence of the primary after which another one may be elected.
    pub election_timeout: Option<Time>,
    /// How long a commit may wait for a quorum.
    pub commit_timeout: Option<Time>,
    /// How long a call of this program may take before the node counts as stuck.
    pub stuck_timeout: Option<Time>,
    /// What a start does while applications use the mount of an earlier run.
    pub stale_mount: Option<StaleMountMode>,
    /// Databases that are read-only on a voter that is not primary.
    pub readonly_on_follower: Option<Vec<String>>,
    /// Listen where others than this machine's programs reach it, with neither TLS nor tokens.
    pub insecure: Option<bool>,
    /// Certificates of the authorities that other nodes' certificates are of: a file, or the PEM text.
    pub tls_ca: Option<String>,
    /// This node's certificate: a file, or the PEM text.
    pub tls_cert: Option<String>,
    /// Its private key: a file, or the PEM text.
    pub tls_key: Option<String>,
    /// Serve the API over TLS too.
    pub tls_http: Option<bool>,
    /// File with the token that nodes show each other where there is no TLS.
    pub join_token_file: Option<PathBuf>,
    /// File with the token that lets clients of the API read.
    pub read_token_file: Option<PathBuf>,
    /// File with the token that lets clients of the API do everything.
    pub admin_token_file: Option<PathBuf>,
    /// Tokens of the environment; no keys of the file.
    #[serde(skip)]
    pub tokens: TokenTexts,
    /// Form of the log on stderr.
    pub log_format: Option<LogFormat>,
    /// Program to run once applications may start, with its arguments.
    pub command: Option<Vec<String>>,
    /// The proxy in front of the application.
    pub proxy: ProxyPartial,
    /// How that program runs.
    pub exec: PartialExec,
    /// What bounds writers.
    pub limits: PartialLimits,
    /// Whom commits are traced for.
    pub traces: PartialTraces,
    /// Section `[sql]`.
    pub sql: PartialSql,
    /// Where databases are backed up to.
    pub backup: PartialBackup,
    /// What is kept of earlier states.
    pub history: PartialHistory,
}

impl Partial {
    /// These settings, and where they say nothing those of `below`.
    pub fn or(self, below: Partial) -> Partial {
        Partial {
            mount: self.mount.or(below.mount),
            data: self.data.or(below.data),
            name: self.name.or(below.name),
            role: self.role.or(below.role),
            listen: self.listen.or(below.listen),
            http: self.http.or(below.http),
            advertise: self.advertise.or(below.advertise),
            advertise_http: self.advertise_http.or(below.advertise_http),
            bootstrap: self.bootstrap.or(below.bootstrap),
            bootstrap_expect: self.bootstrap_expect.or(below.bootstrap_expect),
            restore_from: self.restore_from.or(below.restore_from),
            join: self.join.or(below.join),
            no_passthrough: self.no_passthrough.or(below.no_passthrough),
            allow_other: self.allow_other.or(below.allow_other),
            mount_uid: self.mount_uid.or(below.mount_uid),
            mount_gid: self.mount_gid.or(below.mount_gid),
            mount_file_mode: self.mount_file_mode.or(below.mount_file_mode),
            mount_dir_mode: self.mount_dir_mode.or(below.mount_dir_mode),
            heartbeat: self.heartbeat.or(below.heartbeat),
            election_timeout: self.election_timeout.or(below.election_timeout),
            commit_timeout: self.commit_timeout.or(below.commit_timeout),
            stuck_timeout: self.stuck_timeout.or(below.stuck_timeout),
            stale_mount: self.stale_mount.or(below.stale_mount),
            readonly_on_follower: self.readonly_on_follower.or(below.readonly_on_follower),
            insecure: self.insecure.or(below.insecure),
            tls_ca: self.tls_ca.or(below.tls_ca),
            tls_cert: self.tls_cert.or(below.tls_cert),
            tls_key: self.tls_key.or(below.tls_key),
            tls_http: self.tls_http.or(below.tls_http),
            join_token_file: self.join_token_file.or(below.join_token_file),
            read_token_file: self.read_token_file.or(below.read_token_file),
            admin_token_file: self.admin_token_file.or(below.admin_token_file),
            tokens: self.tokens.or(below.tokens),
            log_format: self.log_format.or(below.log_format),
            command: self.command.or(below.command),
            proxy: self.proxy.or(below.proxy),
            exec: self.exec.or(below.exec),
            limits: self.limits.or(below.limits),
            traces: self.traces.or(below.traces),
            sql: self.sql.or(below.sql),
            backup: self.backup.or(below.backup),
            history: self.history.or(below.history),
        }
    }

    /// Every key and section there is.
    pub fn keys() -> Vec<String> {
        let all = serde_json::to_value(Partial::default()).expect("the settings are plain data");
        all.as_object().map(|keys| keys.keys().cloned().collect()).unwrap_or_default()
    }

    /// Every section with its keys.
    pub fn sections() -> Vec<(String, Vec<String>)> {
        let all = serde_json::to_value(Partial::default()).expect("the settings are plain data");
        let of = |(name, value): (&String, &serde_json::Value)| {
            Some((name.clone(), value.as_object()?.keys().cloned().collect()))
        };
        all.as_object().map(|keys| keys.iter().filter_map(of).collect()).unwrap_or_default()
    }
}

/// Reads a configuration file, with `${NAME}` replaced from the environment.
///
/// # Errors
/// Where the file cannot be read, is no TOML, has a key that does not exist, or a value of the wrong kind.
pub fn load(path: &Path) -> Result<Partial, ConfigError> {
    let text =
        fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    parse(&text, &|name| std::env::var(name).ok())
        .map_err(|why| ConfigError::File { path: path.to_owned(), why })
}

fn parse(text: &str, lookup: &dyn Fn(&str) -> Option<String>) -> Result<Partial, String> {
    let table: Table = text.parse().map_err(|error: toml::de::Error| {
        let at = error.span().map_or(0, |span| span.start).min(text.len());
        let line = text.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count() + 1;
        format!("line {line}: {}", one_line(error.message()))
    })?;
    let keys = Partial::keys();
    let table = flatten(table, &keys);
    if let Some(key) = table.keys().find(|key| !keys.contains(key)) {
        return Err(unknown_key(text, key, &keys));
    }
    // Key by key, so that an error can name the key.
    let mut settings = Table::new();
    for (key, mut value) in table {
        let at = |why: String| format!("{}key {key:?}: {why}", line_of(text, &key));
        expand::expand(&mut value, lookup).map_err(at)?;
        if let Value::Table(section) = &value
            && let Some(known) = Partial::sections().iter().find(|(name, _)| *name == key)
        {
            check_section(text, known, section)?;
        }
        let alone: Table = [(key.clone(), value.clone())].into_iter().collect();
        let parsed = Value::Table(alone).try_into::<Partial>();
        parsed.map_err(|error| at(one_line(error.message()) + wanted_form(error.message())))?;
        settings.insert(key, value);
    }
    Value::Table(settings).try_into().map_err(|error| one_line(error.message()))
}

/// A table is the first word of its keys: `[tls] ca` is `tls_ca`. `[mount]` is one too, where `dir` is the key `mount`.
fn flatten(table: Table, keys: &[String]) -> Table {
    let mut flat = Table::new();
    for (name, value) in table {
        match value {
            Value::Table(inner) if !keys.contains(&name) || name == "mount" => {
                flat.extend(inner.into_iter().map(|(key, value)| match (name.as_str(), key.as_str()) {
                    ("mount", "dir") => (name.clone(), value),
                    _ => (format!("{name}_{key}"), value),
                }));
            }
            value => drop(flat.insert(name, value)),
        }
    }
    flat
}

/// Key by key, so that an error can name the key of a section, too.
fn check_section(text: &str, (name, keys): &(String, Vec<String>), section: &Table) -> Result<(), String> {
    for (key, value) in section {
        if !keys.contains(key) {
            return Err(unknown_key(text, &format!("{name}.{key}"), &dotted(name, keys)));
        }
        let inner: Table = [(key.clone(), value.clone())].into_iter().collect();
        let alone: Table = [(name.clone(), Value::Table(inner))].into_iter().collect();
        Value::Table(alone).try_into::<Partial>().map_err(|error| {
            let (line, why) = (line_of(text, key), one_line(error.message()));
            format!("{line}key \"{name}.{key}\": {why}{}", wanted_form(error.message()))
        })?;
    }
    Ok(())
}

fn dotted(section: &str, keys: &[String]) -> Vec<String> {
    keys.iter().map(|key| format!("{section}.{key}")).collect()
}

/// What is said of a key that does not exist: the one that was meant, where that can be guessed.
fn unknown_key(text: &str, key: &str, keys: &[String]) -> String {
    let nested = || Partial::sections().into_iter().flat_map(|(name, keys)| dotted(&name, &keys));
    let plain = key.replace('.', "_");
    let known = keys.iter().cloned().chain(nested());
    let best = known.map(|known| (distance(&plain, &known.replace('.', "_")), known)).min();
    let hint = match best.filter(|(distance, _)| *distance <= 1 + plain.len() / 5) {
        Some((_, best)) => format!("did you mean {best:?}?"),
        None => format!("the keys are {}", keys.join(", ")),
    };
    let last = key.rsplit('.').next().unwrap_or(key);
    format!("{}key {key:?} does not exist; {hint}", line_of(text, last))
}

/// `line 7: ` of the line where a key stands, which may be split into a table and the rest; nothing where it is not found.
fn line_of(text: &str, key: &str) -> String {
    let begins = |line: &str, key: &str| {
        let rest = line.trim_start().strip_prefix(key);
        rest.is_some_and(|rest| rest.trim_start().starts_with('='))
    };
    let table = |line: &str| line.trim() == format!("[{key}]");
    let whole = text.lines().position(|line| begins(line, key) || table(line));
    let split = || {
        let (_, inner) = key.split_once('_')?;
        text.lines().position(|line| begins(line, inner))
    };
    whole.or_else(split).map_or_else(String::new, |line| format!("line {}: ", line + 1))
}

/// How a value of another type would have to be written.
fn wanted_form(message: &str) -> &'static str {
    match message {
        _ if message.contains("expected a string") => " (in quotes: \"5s\", \"64MiB\", \"HOST:PORT\")",
        _ if message.contains("expected a sequence") => " (a list: [\"...\"])",
        _ if message.contains("expected a boolean") => " (true or false, without quotes)",
        _ => "",
    }
}

/// Letters to be changed, added or left out to make one word of the other.
///
/// Source: Levenshtein's distance, by R. Wagner and M. Fischer, "The String-to-String Correction Problem".
fn distance(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.chars().count()).collect();
    for (i, a) in from.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in to.chars().enumerate() {
            let changed = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[to.chars().count()]
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;

    fn of(text: &str) -> Result<Partial, String> {
        parse(text, &|name| (name == "DIR").then(|| "/srv".to_owned()))
    }

    #[test]
    fn unknown_keys_are_named() {
        let error = of("mout = '/x'\n").unwrap_err();
        assert!(error.contains("\"mout\"") && error.contains("mount"), "{error}");
    }

    #[test]
    fn a_table_is_the_first_word_of_its_keys() {
        let partial = of("[tls]\nca = '/ca.pem'\nhttp = true\n").unwrap();
        assert_eq!((partial.tls_ca, partial.tls_http), (Some("/ca.pem".into()), Some(true)));
        let partial = of("[mount]\ndir = '/m'\nuid = 1000\ngid = 'app'\nfile_mode = '640'\n").unwrap();
        assert_eq!(partial.mount, Some("/m".into()));
        assert_eq!(partial.mount_uid, "1000".parse().ok());
        assert_eq!((partial.mount_gid, partial.mount_file_mode), ("app".parse().ok(), "640".parse().ok()));
        let error = of("mount_dir_mode = 'rwx'\n").unwrap_err();
        assert!(error.contains("\"mount_dir_mode\""), "{error}");
        let error = of("[tls]\nkay = '/k'\n").unwrap_err();
        assert!(error.contains("\"tls_kay\""), "{error}");
    }

    #[test]
    fn bad_values_name_their_key_and_bad_syntax_its_line() {
        for (text, part) in [
            ("listen = 5", "\"listen\""),
            ("http = 'nowhere'", "\"http\""),
            ("bootstrap = 'yes'", "\"bootstrap\""),
            ("mount = '${NOT_SET}/a'", "NOT_SET"),
            ("mount = '/a'\nname = = 1", "line 2"),
            (
                "name = 'a'\nheartbeet = '1s'",
                "line 2: key \"heartbeet\" does not exist; did you mean \"heartbeat\"?",
            ),
            (
                "commit_timeout = 5",
                "line 1: key \"commit_timeout\": invalid type: integer `5`, expected a string (in quotes",
            ),
            (
                "\n[limits]\nlog_keep = '64 parsecs'",
                "line 3: key \"limits.log_keep\": \"64 parsecs\" is no size",
            ),
            (
                "[limits]\nlog_kep = '1G'",
                "line 2: key \"limits.log_kep\" does not exist; did you mean \"limits.log_keep\"?",
            ),
            ("[proxi]\naddr = 'h:1'", "did you mean \"proxy.addr\"?"),
        ] {
            let error = of(text).unwrap_err();
            assert!(error.contains(part) && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn variables_are_expanded_in_values() {
        assert_eq!(of("data = '${DIR}/skein'").unwrap().data, Some(PathBuf::from("/srv/skein")));
    }

    #[test]
    fn the_first_source_wins_key_by_key() {
        let above = Partial { bootstrap: Some(false), ..Partial::default() };
        let below = Partial {
            bootstrap: Some(true),
            name: Some("n".into()),
            allow_other: Some(true),
            ..above.clone()
        };
        let merged = above.or(below);
        assert_eq!(merged.bootstrap, Some(false));
        assert_eq!((merged.name, merged.allow_other), (Some("n".into()), Some(true)));
    }

    #[test]
    fn the_example_lists_every_key_with_its_default_and_a_comment() {
        let text = include_str!("../../examples/skein.toml");
        let example = parse(text, &|_| None).unwrap();
        let given: Table = text.parse().unwrap();
        let sections = Partial::sections();
        let plain = Partial::keys().into_iter().filter(|key| sections.iter().all(|(name, _)| name != key));
        let all = [(String::new(), plain.collect())].into_iter().chain(sections.clone());
        for (section, keys) in all {
            let given =
                if section.is_empty() { Some(&given) } else { given.get(&section).and_then(Value::as_table) };
            let given = given.unwrap_or_else(|| panic!("section [{section}] is missing"));
            let lines: Vec<_> = text.lines().collect();
            let begin = lines.iter().position(|line| section.is_empty() || **line == format!("[{section}]"));
            for key in keys {
                assert!(given.contains_key(&key), "{section} {key} is missing");
                let after = begin.unwrap();
                let found = lines[after..].iter().position(|line| line.starts_with(&format!("{key} =")));
                let line = after + found.unwrap();
                assert!(lines[line - 1].starts_with("# "), "{section} {key} has no comment");
            }
        }
        // All but what cannot have a default.
        let above = ProxyPartial {
            addr: Some("127.0.0.1:8081".into()),
            target: Some("127.0.0.1:8080".into()),
            db: Some(crate::config::OneOrMany::One("app.db".into())),
            ..ProxyPartial::default()
        };
        let resolved = |below| {
            let with = Partial {
                proxy: above.clone().or(below),
                mount: Some("/m".into()),
                data: Some("/d".into()),
                ..Partial::default()
            };
            Settings::resolve(with, "node1").unwrap().proxy
        };
        assert_eq!(resolved(example.proxy.clone()), resolved(ProxyPartial::default()));
        // It starts as it stands, so it founds a cluster.
        let directories = Partial {
            mount: example.mount.clone(),
            data: example.data.clone(),
            bootstrap: Some(true),
            ..Partial::default()
        };
        let defaults = Settings::resolve(directories, "node1").unwrap();
        let settings = Settings::resolve(example, "node1").unwrap();
        let advertised = Settings {
            advertise: settings.advertise.clone(),
            advertise_http: settings.advertise_http.clone(),
            ..defaults
        };
        assert_eq!(settings, advertised);
        assert_eq!(settings.advertise, Some(settings.listen));
        assert_eq!(settings.advertise_http, Some(format!("http://{}", settings.http)));
    }
}
