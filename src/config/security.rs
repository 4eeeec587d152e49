use std::path::PathBuf;

use super::{ConfigError, HostPort, Partial};
use crate::security::{CertificateFiles, Token};

/// Who may speak to a node, and how.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Security {
    /// Certificates; `None`: no TLS.
    pub certificates: Option<CertificateFiles>,
    /// Whether the API is served over TLS too.
    pub https: bool,
    /// Whether listening to the network with neither TLS nor tokens is wanted.
    pub insecure: bool,
    /// What nodes show each other where there is no TLS.
    pub join_token: Option<Token>,
    /// What lets clients of the API read.
    pub read_token: Option<Token>,
    /// What lets clients of the API do everything.
    pub admin_token: Option<Token>,
}

impl Security {
    /// From all sources; an empty path is none.
    ///
    /// # Errors
    /// Where a token cannot be read, or values contradict each other.
    pub fn resolve(partial: &Partial) -> Result<Self, ConfigError> {
        let given = |value: &Option<String>| value.clone().filter(|text| !text.is_empty());
        let certificates = match (given(&partial.tls_ca), given(&partial.tls_cert), given(&partial.tls_key)) {
            (Some(ca), Some(cert), Some(key)) => Some(CertificateFiles { ca, cert, key }),
            (None, None, None) => None,
            _ => return refuse("TLS needs all three of --tls-ca, --tls-cert and --tls-key"),
        };
        let tokens = &partial.tokens;
        let security = Self {
            certificates,
            https: partial.tls_http.unwrap_or(false),
            insecure: partial.insecure.unwrap_or(false),
            join_token: token("join", partial.join_token_file.as_ref(), tokens.join.as_ref())?,
            read_token: token("read", partial.read_token_file.as_ref(), tokens.read.as_ref())?,
            admin_token: token("admin", partial.admin_token_file.as_ref(), tokens.admin.as_ref())?,
        };
        if security.https && security.certificates.is_none() {
            return refuse("--tls-http needs --tls-ca, --tls-cert and --tls-key");
        }
        if security.read_token.is_some() && security.read_token == security.admin_token {
            return refuse(
                "the read token and the admin token are the same: whoever may read could do everything",
            );
        }
        Ok(security)
    }

    /// Whether a node may listen there.
    ///
    /// # Errors
    /// Where others than this machine's programs reach the node and nothing keeps them out.
    pub fn check(&self, listen: &HostPort, http: &HostPort) -> Result<(), ConfigError> {
        if self.insecure {
            return Ok(());
        }
        if !listen.is_loopback() && self.certificates.is_none() {
            return refuse(&format!(
                "--listen {listen} is open to the network and there is no TLS: give --tls-ca, --tls-cert and --tls-key \
                 (skein certs makes them), or --insecure where everybody in that network is trusted"
            ));
        }
        if !http.is_loopback() && self.read_token.is_none() && self.admin_token.is_none() {
            return refuse(&format!(
                "--http {http} is open to the network and there is no token: give --admin-token-file and \
                 --read-token-file, or --insecure where everybody in that network is trusted"
            ));
        }
        Ok(())
    }

    /// The scheme of the API's URL.
    pub fn scheme(&self) -> &'static str {
        if self.https { "https" } else { "http" }
    }
}

fn refuse<T>(why: &str) -> Result<T, ConfigError> {
    Err(ConfigError::Invalid(why.to_owned()))
}

/// The token of the file; without one that of the environment.
fn token(kind: &str, file: Option<&PathBuf>, text: Option<&String>) -> Result<Option<Token>, ConfigError> {
    // What nodes show each other cannot change on one node alone.
    let of_file = if kind == "join" { Token::read } else { Token::follow };
    let read = match (file.filter(|path| !path.as_os_str().is_empty()), text) {
        (Some(path), _) => of_file(path).map_err(|error| format!("--{kind}-token-file: {error}")),
        (None, Some(text)) => {
            Token::new(text).map_err(|error| format!("SKEIN_{}_TOKEN: {error}", kind.to_uppercase()))
        }
        (None, None) => return Ok(None),
    };
    let token = read.map_err(ConfigError::Invalid)?;
    if token.is_short() {
        tracing::warn!(
            "the {kind} token is short enough to be guessed: openssl rand -hex 32 makes a better one"
        );
    }
    Ok(Some(token))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Settings, TokenTexts};

    fn at(listen: &str, http: &str) -> Partial {
        Partial {
            mount: Some("/m".into()),
            data: Some("/d".into()),
            listen: Some(listen.parse().unwrap()),
            http: Some(http.parse().unwrap()),
            ..Partial::default()
        }
    }

    fn tls(partial: Partial) -> Partial {
        let (ca, cert, key) = (Some("/ca".into()), Some("/cert".into()), Some("/key".into()));
        Partial { tls_ca: ca, tls_cert: cert, tls_key: key, ..partial }
    }

    fn admin(partial: Partial) -> Partial {
        let admin = Some("0123456789abcdef".into());
        Partial { tokens: TokenTexts { admin, ..TokenTexts::default() }, ..partial }
    }

    #[test]
    fn the_network_is_let_in_only_with_tls_and_tokens_or_on_demand() {
        let refusal = |partial| Settings::resolve(partial, "n1").unwrap_err().to_string();
        let (open, local) = ("0.0.0.0:1", "127.0.0.1:2");
        assert!(Settings::resolve(at(local, "[::1]:1"), "n1").is_ok());
        assert!(refusal(at(open, local)).contains("--insecure"));
        assert!(refusal(admin(at("n1.example.com:1", local))).contains("skein certs"));
        assert!(refusal(tls(at(local, open))).contains("--admin-token-file"));
        for partial in [
            tls(at(open, local)),
            admin(at(local, open)),
            Partial { insecure: Some(true), ..at(open, "[::]:2") },
            tls(admin(at(open, "0.0.0.0:2"))),
        ] {
            assert!(Settings::resolve(partial, "n1").is_ok());
        }
    }

    #[test]
    fn half_of_a_configuration_is_refused() {
        let refusal = |partial| Settings::resolve(partial, "n1").unwrap_err().to_string();
        let local = || at("127.0.0.1:1", "127.0.0.1:2");
        assert!(refusal(Partial { tls_ca: Some("/ca".into()), ..local() }).contains("--tls-key"));
        assert!(refusal(Partial { tls_http: Some(true), ..local() }).contains("--tls-cert"));
        let missing = Partial { join_token_file: Some("/nowhere/token".into()), ..local() };
        assert!(refusal(missing).contains("/nowhere/token"));
        let mut same = admin(local());
        same.tokens.read = same.tokens.admin.clone();
        assert!(refusal(same).contains("the same"));
        let empty = Partial { tls_ca: Some(String::new()), join_token_file: Some(PathBuf::new()), ..local() };
        assert_eq!(Settings::resolve(empty, "n1").unwrap().security, Security::default());
    }
}
