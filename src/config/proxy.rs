use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{ConfigError, HostPort, Time};
use crate::types::DbName;

/// One text or several.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

impl OneOrMany {
    pub(super) fn into_vec(self) -> Vec<String> {
        match self {
            OneOrMany::One(text) => vec![text],
            OneOrMany::Many(texts) => texts,
        }
    }
}

/// The section `[proxy]` as one source gives it.
///
/// The first four keys are also the options `--proxy-KEY` and the environment variables `SKEIN_PROXY_KEY`.
#[derive(Clone, Default, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProxyPartial {
    /// Where the proxy listens; empty: there is none.
    pub addr: Option<String>,
    /// Where the application listens.
    pub target: Option<String>,
    /// The databases whose transactions the cookie follows.
    pub db: Option<OneOrMany>,
    /// The URL under which the proxies of other nodes reach this one, where there is no TLS between nodes.
    pub advertise: Option<String>,
    /// Paths that go to the application of this node unseen.
    pub passthrough: Option<Vec<String>>,
    /// Paths that are writes whatever their method.
    pub always_forward: Option<Vec<String>>,
    /// Lag from which on the health check fails.
    pub max_lag: Option<Time>,
    /// How long a write may wait for a primary.
    pub primary_redirect_timeout: Option<Time>,
    /// How long a read may wait for the transaction in its cookie.
    pub txid_timeout: Option<Time>,
    /// How long a planned move of the primary waits for writes under way.
    pub drain_timeout: Option<Time>,
    /// How long the application may refuse connections.
    pub connect_timeout: Option<Time>,
    /// How long the application may take to begin its answer.
    pub response_timeout: Option<Time>,
    /// How long a connection may take to send the head of a request.
    pub idle_timeout: Option<Time>,
    /// The largest body that is held to be sent again where it was never sent.
    pub held_body_bytes: Option<u64>,
    /// Connections at a time.
    pub max_connections: Option<u32>,
    /// Answer writes with `fly-replay`.
    pub fly_replay: Option<bool>,
    /// Log each request.
    pub access_log: Option<bool>,
}

impl ProxyPartial {
    /// These settings, and where they say nothing those of `below`.
    pub fn or(self, below: Self) -> Self {
        Self {
            addr: self.addr.or(below.addr),
            target: self.target.or(below.target),
            db: self.db.or(below.db),
            advertise: self.advertise.or(below.advertise),
            passthrough: self.passthrough.or(below.passthrough),
            always_forward: self.always_forward.or(below.always_forward),
            max_lag: self.max_lag.or(below.max_lag),
            primary_redirect_timeout: self.primary_redirect_timeout.or(below.primary_redirect_timeout),
            txid_timeout: self.txid_timeout.or(below.txid_timeout),
            drain_timeout: self.drain_timeout.or(below.drain_timeout),
            connect_timeout: self.connect_timeout.or(below.connect_timeout),
            response_timeout: self.response_timeout.or(below.response_timeout),
            idle_timeout: self.idle_timeout.or(below.idle_timeout),
            held_body_bytes: self.held_body_bytes.or(below.held_body_bytes),
            max_connections: self.max_connections.or(below.max_connections),
            fly_replay: self.fly_replay.or(below.fly_replay),
            access_log: self.access_log.or(below.access_log),
        }
    }
}

/// The settings of the proxy in front of the application, complete and checked.
#[derive(Clone, PartialEq, Debug)]
pub struct ProxySettings {
    /// Where it listens.
    pub addr: HostPort,
    /// Where the application listens.
    pub target: HostPort,
    /// The databases whose transactions the cookie follows; at least one.
    pub dbs: Vec<DbName>,
    /// The URL under which the proxies of other nodes reach this one; `None`: from the address it listens at.
    pub advertise: Option<String>,
    /// Paths that go to the application of this node unseen; `*` is any text.
    pub passthrough: Vec<String>,
    /// Paths that are writes whatever their method; `*` is any text.
    pub always_forward: Vec<String>,
    /// Lag from which on the health check fails.
    pub max_lag: Duration,
    /// How long a write may wait for a primary.
    pub primary_redirect_timeout: Duration,
    /// How long a read may wait for the transaction in its cookie, before the primary is asked.
    pub txid_timeout: Duration,
    /// How long a planned move of the primary waits for writes under way.
    pub drain_timeout: Duration,
    /// How long the application may refuse connections, as while it starts.
    pub connect_timeout: Duration,
    /// How long the application may take to begin its answer; zero: without limit.
    pub response_timeout: Duration,
    /// How long a connection may be idle, or take to send the head of a request.
    pub idle_timeout: Duration,
    /// The largest body that is held to be sent again where it was never sent, in bytes.
    pub held_body_bytes: u64,
    /// Connections at a time; more wait to be accepted.
    pub max_connections: u32,
    /// Answer writes with `fly-replay` instead of passing them on.
    pub fly_replay: bool,
    /// Write a line for each request to the node's log.
    pub access_log: bool,
}

/// Databases one cookie may follow: it has to fit into a header.
const DBS_MAX: usize = 16;

impl ProxySettings {
    /// Lag from which on the health check fails, unless told otherwise.
    pub const MAX_LAG: Duration = Duration::from_secs(10);
    /// How long a write may wait for a primary, unless told otherwise.
    pub const PRIMARY_REDIRECT_TIMEOUT: Duration = Duration::from_secs(5);
    /// How long a read may wait for its transaction, unless told otherwise.
    pub const TXID_TIMEOUT: Duration = Duration::from_secs(1);
    /// How long a planned move waits for writes under way, unless told otherwise.
    pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);
    /// How long the application may refuse connections, unless told otherwise.
    pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
    /// How long the application may take to begin its answer, unless told otherwise.
    pub const RESPONSE_TIMEOUT: Duration = Duration::from_secs(60);
    /// How long a connection may be idle, unless told otherwise.
    pub const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
    /// The largest body that is held, unless told otherwise.
    pub const HELD_BODY_BYTES: u64 = 256 << 10;
    /// Connections at a time, unless told otherwise.
    pub const MAX_CONNECTIONS: u32 = 4096;

    /// Fills in the defaults and checks the whole; `None` where no proxy is asked for.
    ///
    /// # Errors
    /// Where `target` or `db` is missing, or a value is not acceptable; the key is named.
    pub(super) fn resolve(partial: ProxyPartial) -> Result<Option<Self>, ConfigError> {
        let invalid = |key: &str, why: String| ConfigError::Invalid(format!("proxy.{key}: {why}"));
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        let Some(addr) = given(partial.addr) else { return Ok(None) };
        let missing = |key: &str, what: &str| invalid(key, format!("is missing beside proxy.addr: {what}"));
        let target =
            given(partial.target).ok_or_else(|| missing("target", "write the application's HOST:PORT"))?;
        let mut dbs = Vec::new();
        for name in partial.db.map(OneOrMany::into_vec).unwrap_or_default() {
            dbs.push(DbName::new(&name).map_err(|error| invalid("db", error.to_string()))?);
        }
        if dbs.is_empty() {
            return Err(missing("db", "name the databases of the application"));
        }
        let time = |time: Option<Time>, default| time.map_or(default, Time::get);
        let settings = Self {
            addr: addr.parse().map_err(|why| invalid("addr", why))?,
            target: target.parse().map_err(|why| invalid("target", why))?,
            dbs,
            advertise: given(partial.advertise).map(|url| url.trim_end_matches('/').to_owned()),
            passthrough: partial.passthrough.unwrap_or_default(),
            always_forward: partial.always_forward.unwrap_or_default(),
            max_lag: time(partial.max_lag, Self::MAX_LAG),
            primary_redirect_timeout: time(partial.primary_redirect_timeout, Self::PRIMARY_REDIRECT_TIMEOUT),
            txid_timeout: time(partial.txid_timeout, Self::TXID_TIMEOUT),
            drain_timeout: time(partial.drain_timeout, Self::DRAIN_TIMEOUT),
            connect_timeout: time(partial.connect_timeout, Self::CONNECT_TIMEOUT),
            response_timeout: time(partial.response_timeout, Self::RESPONSE_TIMEOUT),
            idle_timeout: time(partial.idle_timeout, Self::IDLE_TIMEOUT),
            held_body_bytes: partial.held_body_bytes.unwrap_or(Self::HELD_BODY_BYTES),
            max_connections: partial.max_connections.unwrap_or(Self::MAX_CONNECTIONS),
            fly_replay: partial.fly_replay.unwrap_or(false),
            access_log: partial.access_log.unwrap_or(false),
        };
        settings.check().map_err(|(key, why)| invalid(key, why.to_owned()))?;
        Ok(Some(settings))
    }

    fn check(&self) -> Result<(), (&'static str, &'static str)> {
        if self.dbs.len() > DBS_MAX {
            return Err(("db", "one cookie follows at most 16 databases"));
        }
        if self.target.port() == 0 || self.target == self.addr {
            return Err(("target", "must be the address of the application, not the proxy's own"));
        }
        if self.advertise.as_ref().is_some_and(|url| !url.starts_with("http://")) {
            return Err(("advertise", "must be a URL that starts with http://"));
        }
        if self.idle_timeout < Duration::from_secs(10) {
            return Err((
                "idle_timeout",
                "must be at least 10s: proxies keep connections to one another for 5s",
            ));
        }
        if self.held_body_bytes > 16 << 20 {
            return Err(("held_body_bytes", "must be at most 16777216 (16 MiB)"));
        }
        if self.max_connections == 0 {
            return Err(("max_connections", "must be at least 1"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minimal() -> ProxyPartial {
        ProxyPartial {
            addr: Some("127.0.0.1:8081".into()),
            target: Some("127.0.0.1:8080".into()),
            db: Some(OneOrMany::One("app.db".into())),
            ..ProxyPartial::default()
        }
    }

    fn refusal(partial: ProxyPartial) -> String {
        ProxySettings::resolve(partial).unwrap_err().to_string()
    }

    #[test]
    fn without_an_address_there_is_no_proxy() {
        assert_eq!(ProxySettings::resolve(ProxyPartial::default()).unwrap(), None);
        let off = ProxyPartial { addr: Some(String::new()), ..minimal() };
        assert_eq!(ProxySettings::resolve(off).unwrap(), None);
        assert!(ProxySettings::resolve(minimal()).unwrap().is_some());
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        assert!(refusal(ProxyPartial { target: None, ..minimal() }).starts_with("proxy.target: is missing"));
        assert!(refusal(ProxyPartial { db: None, ..minimal() }).starts_with("proxy.db: is missing"));
        let bad = Some(OneOrMany::One("../x".into()));
        assert!(refusal(ProxyPartial { db: bad, ..minimal() }).starts_with("proxy.db"));
        let same = Some("127.0.0.1:8081".into());
        assert!(refusal(ProxyPartial { target: same, ..minimal() }).contains("own"));
        let many = Some(OneOrMany::Many((0..17).map(|n| format!("{n}.db")).collect()));
        assert!(refusal(ProxyPartial { db: many, ..minimal() }).contains("at most 16"));
        let url = Some("n1:8081".into());
        assert!(refusal(ProxyPartial { advertise: url, ..minimal() }).contains("http://"));
        let short = Some("1s".parse().unwrap());
        assert!(refusal(ProxyPartial { idle_timeout: short, ..minimal() }).contains("idle_timeout"));
    }
}
