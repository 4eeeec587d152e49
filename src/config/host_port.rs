use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An address `HOST:PORT`; the host is a name, an IPv4 address, or an IPv6 address in brackets.
#[derive(Clone, PartialEq, Eq, Debug, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostPort {
    host: String,
    port: u16,
}

impl HostPort {
    /// The host, an IPv6 address without its brackets.
    pub fn host(&self) -> &str {
        self.host.trim_start_matches('[').trim_end_matches(']')
    }

    /// The port; 0 lets the kernel choose.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether only programs of this machine reach the address.
    pub fn is_loopback(&self) -> bool {
        self.host() == "localhost" || self.host().parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }

    /// Whether the address stands for every address of the machine, so nobody can dial it.
    pub fn is_unspecified(&self) -> bool {
        self.host().parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified())
    }

    /// The same port at another host.
    pub fn at_host(&self, host: &str) -> Self {
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        Self { host, port: self.port }
    }

    /// The same host with another port.
    pub fn with_port(&self, port: u16) -> Self {
        Self { host: self.host.clone(), port }
    }
}

impl FromStr for HostPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("address {text:?} is not HOST:PORT, such as 127.0.0.1:20203 or [::1]:20203");
        let (host, port) = text.rsplit_once(':').ok_or_else(bad)?;
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let valid = match bracketed {
            Some(ipv6) => ipv6.parse::<std::net::Ipv6Addr>().is_ok(),
            None => {
                (1..=253).contains(&host.len())
                    && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
            }
        };
        let port = port.parse().map_err(|_| bad())?;
        if valid { Ok(Self { host: host.to_owned(), port }) } else { Err(bad()) }
    }
}

impl TryFrom<String> for HostPort {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<HostPort> for String {
    fn from(address: HostPort) -> Self {
        address.to_string()
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_round_trip_and_others_are_refused() {
        for text in ["127.0.0.1:20203", "[::1]:0", "node-1.example.com:65535"] {
            assert_eq!(text.parse::<HostPort>().unwrap().to_string(), text);
        }
        for text in ["", ":1", "host", "host:", "host:70000", "::1:20203", "http://h:1", "a b:1"] {
            assert!(text.parse::<HostPort>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn loopback_and_wildcard_addresses_are_known() {
        let of = |text: &str| text.parse::<HostPort>().unwrap();
        assert!(
            of("127.0.0.1:1").is_loopback() && of("[::1]:1").is_loopback() && of("localhost:1").is_loopback()
        );
        assert!(of("0.0.0.0:1").is_unspecified() && of("[::]:1").is_unspecified());
        assert!(!of("10.0.0.1:1").is_loopback());
        assert_eq!(of("0.0.0.0:7").at_host("h").to_string(), "h:7");
    }
}
