//! Certificates, and what keeps strangers out.

use std::sync::Arc;

use super::Finding;
use crate::config::{HostPort, Partial, Security, Settings};
use crate::http::Credentials;
use crate::security::{Certificates, Peering, WARN_BEFORE};

/// What a node with these settings shows when it asks others.
pub(super) struct Keys {
    /// To other nodes.
    pub(super) peering: Peering,
    /// To its own API.
    pub(super) credentials: Credentials,
    /// The scheme of its own API.
    pub(super) scheme: &'static str,
}

impl Default for Keys {
    fn default() -> Self {
        let security = Security::default();
        Self { peering: Peering::default(), credentials: Credentials::default(), scheme: security.scheme() }
    }
}

const DAY_SECS: u64 = 24 * 3600;
const TLS: &str = "tls";

/// What the settings give, and what was found about it. Where they are not usable, nothing is shown to anybody.
pub(super) fn examine(settings: &Partial) -> (Keys, Vec<Finding>) {
    let security = match Security::resolve(settings) {
        Ok(security) => security,
        Err(error) => {
            let remedy = "correct the options; skein certs makes certificates, openssl rand -hex 32 a token";
            return (Keys::default(), vec![Finding::failure("security", error.to_string(), remedy)]);
        }
    };
    let mut findings = vec![strangers(settings, &security)];
    let certificates = match security.certificates.clone().map(Certificates::load).transpose() {
        Ok(certificates) => certificates.map(Arc::new),
        Err(error) => {
            findings.push(Finding::failure(TLS, error.to_string(), ISSUE));
            return (Keys::default(), findings);
        }
    };
    findings.extend(security.certificates.as_ref().map(|files| match files.remaining() {
        Ok(left) => life(left.map(|left| left.as_secs())),
        Err(error) => Finding::failure(TLS, error.to_string(), ISSUE),
    }));
    let credentials = Credentials {
        token: security.admin_token.clone().or(security.read_token.clone()),
        ca: security.certificates.as_ref().map(|files| files.ca.clone()),
    };
    let peering = Peering::new(certificates, security.join_token.clone());
    (Keys { peering, credentials, scheme: security.scheme() }, findings)
}

const ISSUE: &str = "issue the node another certificate with skein certs issue";

/// How long the node's certificate still counts, in seconds.
fn life(left: Option<u64>) -> Finding {
    match left {
        Some(0) => Finding::failure(TLS, "the certificate of this node has expired", ISSUE),
        Some(left) if left < WARN_BEFORE.as_secs() => Finding::warning(
            TLS,
            format!("the certificate of this node ends in {} days", left / DAY_SECS),
            ISSUE,
        ),
        Some(left) => {
            Finding::ok(TLS, format!("the certificate of this node is valid for {} days", left / DAY_SECS))
        }
        None => Finding::ok(TLS, "the certificate of this node is usable"),
    }
}

/// Whether others than this machine's programs reach the node, and what keeps them out.
fn strangers(settings: &Partial, security: &Security) -> Finding {
    const CHECK: &str = "strangers";
    let at = |given: &Option<HostPort>, default: &str| {
        given.clone().unwrap_or_else(|| default.parse().expect("a constant address is well-formed"))
    };
    let (listen, http) = (at(&settings.listen, Settings::LISTEN), at(&settings.http, Settings::HTTP));
    if let Err(error) = security.check(&listen, &http) {
        return Finding::failure(CHECK, error.to_string(), "or listen at 127.0.0.1 only");
    }
    if listen.is_loopback() && http.is_loopback() {
        return Finding::ok(CHECK, "only programs of this machine reach the node");
    }
    if security.insecure {
        let remedy = "see the security page; give certificates and tokens, and leave out --insecure";
        return Finding::warning(CHECK, "whoever reaches this machine is let in (--insecure)", remedy);
    }
    Finding::ok(CHECK, "others need a certificate or a token")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::Health;

    #[test]
    fn the_end_of_a_certificate_is_told_in_time() {
        let health = |left| life(left).health;
        assert_eq!(health(Some(0)), Health::Failure);
        assert_eq!(health(Some(WARN_BEFORE.as_secs() - 1)), Health::Warning);
        assert_eq!(health(Some(WARN_BEFORE.as_secs())), Health::Ok);
        assert_eq!(health(None), Health::Ok);
    }

    #[test]
    fn an_open_node_is_told_from_a_closed_one() {
        let of = |listen: &str, insecure| {
            let settings = Partial {
                listen: Some(listen.parse().unwrap()),
                insecure: Some(insecure),
                ..Partial::default()
            };
            examine(&settings).1.remove(0).health
        };
        assert_eq!(of("127.0.0.1:20203", false), Health::Ok);
        assert_eq!(of("0.0.0.0:20203", false), Health::Failure);
        assert_eq!(of("0.0.0.0:20203", true), Health::Warning);
        let half = Partial { tls_ca: Some("/ca.pem".into()), ..Partial::default() };
        let findings = examine(&half).1;
        assert!(findings[0].seen.contains("--tls-key"), "{findings:?}");
    }
}
