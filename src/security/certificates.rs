use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use rustls::client::{Resumption, verify_server_name};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::SecurityError;
use super::alpn::{API_PROTOCOL, HTTP2, PROXY_PROTOCOL, RAFT_PROTOCOL};
use super::file_change::{FileChange, file_change_of};

/// What remains of a certificate's life when its owner is told.
pub const WARN_BEFORE: Duration = Duration::from_secs(30 * 24 * 3600);

/// What a node shows and whom it believes. Each is a file, or the PEM text itself.
#[derive(Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The authorities whose certificates are believed, one or several.
    pub ca: String,
    /// This node's certificate, and those between it and the authority.
    pub cert: String,
    /// Its private key.
    pub key: String,
}

impl std::fmt::Debug for CertificateFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CertificateFiles(..)")
    }
}

/// TLS as configured, with what the files say at the moment of each handshake.
#[derive(Debug)]
pub struct Certificates {
    files: CertificateFiles,
    current: Mutex<Current>,
}

#[derive(Debug)]
struct Current {
    changes: FileChanges,
    configs: Configs,
}

/// What a handshake needs.
#[derive(Clone, Debug)]
pub(super) struct Configs {
    /// For connections that other nodes make; they must show a certificate.
    pub node_server: Arc<ServerConfig>,
    /// For connections made to other nodes.
    pub node_client: Arc<ClientConfig>,
    /// For clients of the API, who show tokens instead.
    pub http_server: Arc<ServerConfig>,
}

/// What tells that one of the files has changed.
type FileChanges = [Option<FileChange>; 3];

impl Certificates {
    /// Loads the files.
    ///
    /// # Errors
    /// Where one cannot be read, is no PEM, or key and certificate do not belong together.
    pub fn load(files: CertificateFiles) -> Result<Self, SecurityError> {
        let changes = files.changes();
        let configs = files.configs()?;
        Ok(Self { files, current: Mutex::new(Current { changes, configs }) })
    }

    /// What the next handshake uses: the files are read again where they have changed. Where that fails the last good
    /// ones stay, and the reason is told.
    pub(super) fn configs(&self) -> Configs {
        let changes = self.files.changes();
        let mut current = self.current.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if current.changes != changes {
            current.changes = changes;
            match self.files.configs() {
                Ok(configs) => {
                    tracing::info!("certificates are reloaded");
                    current.configs = configs;
                }
                Err(error) => tracing::warn!("certificates stay as they were: {error}"),
            }
        }
        current.configs.clone()
    }

    /// The server's side of TLS for a client of the API.
    ///
    /// # Errors
    /// Where the client speaks no TLS, or does not believe this node.
    pub async fn accept_http(&self, stream: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        TlsAcceptor::from(self.configs().http_server).accept(stream).await
    }
}

impl CertificateFiles {
    /// What is left of the life of the node's certificate, zero where it has expired; `None` where that cannot be told.
    ///
    /// # Errors
    /// Where it cannot be read, or is no PEM.
    pub fn remaining(&self) -> Result<Option<Duration>, SecurityError> {
        Ok(remaining(&certificates("--tls-cert", &self.cert)?))
    }

    /// Whether others that dial `host`, a name or an address, find the node's certificate valid for it.
    ///
    /// # Errors
    /// Where it cannot be read, or is no PEM.
    pub fn covers(&self, host: &str) -> Result<bool, SecurityError> {
        let chain = certificates("--tls-cert", &self.cert)?;
        let invalid = |error: &dyn std::fmt::Display| {
            SecurityError::Invalid(format!("--tls-cert {}: {error}", shown(&self.cert)))
        };
        let own = chain.first().ok_or_else(|| invalid(&"holds no certificate"))?;
        let own = ParsedCertificate::try_from(own).map_err(|error| invalid(&error))?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(host).map_err(|error| invalid(&error))?;
        Ok(verify_server_name(&own, &name).is_ok())
    }

    fn changes(&self) -> FileChanges {
        [&self.ca, &self.cert, &self.key].map(|source| file_change_of(file_of(source)?))
    }

    fn configs(&self) -> Result<Configs, SecurityError> {
        let authorities = certificates("--tls-ca", &self.ca)?;
        let chain = certificates("--tls-cert", &self.cert)?;
        let key = private_key(&self.key)?;
        warn_of_end(&chain);
        let invalid = |what: &str, error: &dyn std::fmt::Display| {
            SecurityError::Invalid(format!("{what} {}: {error}", shown(&self.cert)))
        };
        let mut roots = RootCertStore::empty();
        for authority in authorities {
            roots.add(authority).map_err(|error| invalid("--tls-ca", &error))?;
        }
        let (roots, provider) = (Arc::new(roots), Arc::new(ring::default_provider()));
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(|error| invalid("--tls-ca", &error))?;
        let server = || {
            ServerConfig::builder_with_provider(provider.clone())
                .with_protocol_versions(&[&TLS13])
                .map_err(|error| invalid("tls", &error))
        };
        let own = |error: rustls::Error| invalid("--tls-cert and --tls-key", &error);
        let mut node_server = server()?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(own)?;
        node_server.alpn_protocols =
            [HTTP2, RAFT_PROTOCOL, PROXY_PROTOCOL, API_PROTOCOL].map(<[u8]>::to_vec).into();
        // Each connection is checked anew: whose certificate has expired since does not come back.
        node_server.session_storage = Arc::new(NoServerSessionStorage {});
        node_server.send_tls13_tickets = 0;
        let mut http_server =
            server()?.with_no_client_auth().with_single_cert(chain.clone(), key.clone_key()).map_err(own)?;
        http_server.alpn_protocols = vec![b"http/1.1".to_vec()];
        let mut node_client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| invalid("tls", &error))?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(own)?;
        node_client.resumption = Resumption::disabled();
        Ok(Configs {
            node_server: Arc::new(node_server),
            node_client: Arc::new(node_client),
            http_server: Arc::new(http_server),
        })
    }
}

/// Makes ring the cryptography of libraries that open TLS connections with whatever the program has chosen.
pub fn use_ring() {
    // An error says that it is chosen already.
    let _ = ring::default_provider().install_default();
}

/// The client's side of TLS for the API; it believes the authorities of `ca`, none without it.
///
/// # Errors
/// Where they cannot be read.
pub fn api_client(ca: Option<&str>) -> Result<ClientConfig, SecurityError> {
    let mut roots = RootCertStore::empty();
    for authority in ca.map(|ca| certificates("--ca", ca)).transpose()?.unwrap_or_default() {
        roots.add(authority).map_err(|error| SecurityError::Invalid(format!("--ca: {error}")))?;
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| SecurityError::Invalid(format!("tls: {error}")))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

/// The file, where it is not the PEM text itself.
fn file_of(source: &str) -> Option<&Path> {
    (!source.trim_start().starts_with("-----BEGIN")).then(|| Path::new(source))
}

fn shown(source: &str) -> String {
    file_of(source).map_or_else(|| "(given as text)".into(), |path| path.display().to_string())
}

fn pem(what: &'static str, source: &str) -> Result<Vec<u8>, SecurityError> {
    match file_of(source) {
        Some(path) => {
            fs::read(path).map_err(|source| SecurityError::Read { what, path: PathBuf::from(path), source })
        }
        None => Ok(source.as_bytes().to_vec()),
    }
}

/// The certificates of a file or text, at least one.
pub(super) fn certificates(
    what: &'static str,
    source: &str,
) -> Result<Vec<CertificateDer<'static>>, SecurityError> {
    let text = pem(what, source)?;
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match parsed {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(SecurityError::Invalid(format!("{what} {}: no certificate is in it", shown(source)))),
        Err(error) => Err(SecurityError::Invalid(format!("{what} {}: {error}", shown(source)))),
    }
}

fn private_key(source: &str) -> Result<PrivateKeyDer<'static>, SecurityError> {
    let text = pem("--tls-key", source)?;
    if let Some(path) = file_of(source)
        && fs::metadata(path).is_ok_and(|file| file.mode() & 0o077 != 0)
    {
        tracing::warn!("--tls-key {} is readable by others: chmod 600", path.display());
    }
    PrivateKeyDer::from_pem_slice(&text)
        .map_err(|error| SecurityError::Invalid(format!("--tls-key {}: {error}", shown(source))))
}

/// Tells when this node's own certificate ends soon, or has ended: the others will not let it in then.
fn warn_of_end(chain: &[CertificateDer<'_>]) {
    match remaining(chain) {
        Some(left) if left.is_zero() => {
            tracing::warn!("this node's certificate has expired: issue another one with skein certs issue");
        }
        Some(left) if left < WARN_BEFORE => {
            let days = left.as_secs() / (24 * 3600);
            tracing::warn!(
                days,
                "this node's certificate expires soon: issue another one with skein certs issue"
            );
        }
        _ => {}
    }
}

/// What is left of the life of a node's own certificate, zero where it has expired; `None` where that cannot be told.
fn remaining(chain: &[CertificateDer<'_>]) -> Option<Duration> {
    let (_, own) = x509_parser::parse_x509_certificate(chain.first()?).ok()?;
    let ends = Duration::from_secs(u64::try_from(own.validity().not_after.timestamp()).unwrap_or(0));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Some(ends.saturating_sub(now))
}
