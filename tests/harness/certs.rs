//! Certificates for nodes, as an operator makes them, and such as no operator would make.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme};

use super::skein;

/// A directory with an authority, made by `skein certs init`.
pub struct Certs {
    pub dir: PathBuf,
}

impl Certs {
    /// A new authority in `dir`.
    pub fn init(dir: &Path) -> Self {
        let certs = Self { dir: dir.to_owned() };
        certs.run(&["init"]);
        certs
    }

    fn run(&self, words: &[&str]) {
        let output = skein().arg("certs").args(words).arg("--dir").arg(&self.dir).output().unwrap();
        assert!(output.status.success(), "certs {words:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// A file of it.
    pub fn file(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    /// Issues a certificate valid at loopback; the options that make a node use it.
    pub fn issue(&self, node: &str) -> Vec<String> {
        self.run(&["issue", node, "--address", "127.0.0.1,localhost"]);
        self.options(node)
    }

    /// The options that make a node use a certificate.
    pub fn options(&self, node: &str) -> Vec<String> {
        let (cert, key) = (self.file(&format!("{node}.pem")), self.file(&format!("{node}-key.pem")));
        ["--tls-ca", &self.file("ca.pem"), "--tls-cert", &cert, "--tls-key", &key].map(str::to_owned).to_vec()
    }

    /// A certificate of this authority that was valid until `ago`.
    pub fn issue_expired(&self, node: &str, ago: Duration) {
        let read = |name| std::fs::read_to_string(self.dir.join(name)).unwrap();
        let signer = KeyPair::from_pem(&read("ca-key.pem")).unwrap();
        let issuer = Issuer::from_ca_cert_pem(&read("ca.pem"), signer).unwrap();
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = (SystemTime::now() - ago * 2).into();
        params.not_after = (SystemTime::now() - ago).into();
        let key = KeyPair::generate().unwrap();
        std::fs::write(self.file(&format!("{node}-key.pem")), key.serialize_pem()).unwrap();
        let cert = params.signed_by(&key, &issuer).unwrap();
        std::fs::write(self.file(&format!("{node}.pem")), cert.pem()).unwrap();
    }

    /// The certificate as it is sent.
    pub fn der(&self, node: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(self.file(&format!("{node}.pem"))).unwrap()
    }
}

/// Believes whoever answers.
#[derive(Debug)]
struct Credulous;

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// What came of a connection.
#[derive(Debug)]
pub struct Met {
    /// What the other end showed.
    pub shown: Option<CertificateDer<'static>>,
    /// Whether it answered HTTP/2 instead of closing.
    pub let_in: bool,
}

/// Connects with TLS to a node's port, believing it whoever it is, with the certificate `own` or without one.
pub fn meet(address: SocketAddr, own: Option<(&Certs, &str)>) -> Met {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous));
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some((certs, node)) => {
            let key = PrivateKeyDer::from_pem_file(certs.file(&format!("{node}-key.pem"))).unwrap();
            builder.with_client_auth_cert(vec![certs.der(node)], key).unwrap()
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let mut tls =
        ClientConnection::new(Arc::new(config), ServerName::try_from("localhost").unwrap()).unwrap();
    let mut socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut stream = rustls::Stream::new(&mut tls, &mut socket);
    // HTTP/2's preface and empty settings; a node that lets us in answers with its own settings.
    let mut answer = [0];
    let said = stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
    let let_in = said.is_ok() && stream.read(&mut answer).is_ok_and(|read| read > 0);
    let shown = tls.peer_certificates().and_then(|chain| chain.first()).map(|own| own.clone().into_owned());
    Met { shown, let_in }
}
