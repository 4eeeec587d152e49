//! The making of certificates.

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::DnsName;

use super::SecurityError;
use crate::types::NodeName;

/// A cluster's own authority, in a directory: `ca.pem`, and `ca-key.pem` that signs for new nodes.
///
/// Keys are ECDSA P-256 and readable by their owner alone. Nothing that exists is ever replaced.
pub struct Authority {
    dir: PathBuf,
}

/// Files that were written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Issued {
    /// The certificate.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// How much earlier than now certificates are valid from: clocks differ.
const EARLIER: Duration = Duration::from_secs(3600);

fn invalid(error: impl std::fmt::Display) -> SecurityError {
    SecurityError::Invalid(format!("making a certificate: {error}"))
}

impl Authority {
    /// The authority in `dir`.
    pub fn at(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    fn files(&self, stem: &str) -> Issued {
        Issued { cert: self.dir.join(format!("{stem}.pem")), key: self.dir.join(format!("{stem}-key.pem")) }
    }

    /// Makes the authority, valid for `life`; the directory where it is missing.
    ///
    /// # Errors
    /// Where one of the files exists already, or cannot be written.
    pub fn init(&self, life: Duration) -> Result<Issued, SecurityError> {
        let files = self.files("ca");
        files.must_be_new()?;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)
            .map_err(|error| SecurityError::Write { path: self.dir.clone(), why: error.to_string() })?;
        let key = KeyPair::generate().map_err(invalid)?;
        // Two authorities never have the same name: whoever believes one is told that the other one is unknown.
        let number = key.public_key_raw().iter().rev().take(8).map(|byte| format!("{byte:02x}"));
        let mut params = params(&format!("skein authority {}", number.collect::<String>()), life)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let cert = params.self_signed(&key).map_err(invalid)?;
        files.write(&cert.pem(), &key)
    }

    /// Issues a certificate for `node`, valid for `life`, at the names and addresses that others dial.
    ///
    /// # Errors
    /// Where there is no authority here, a name is none, or the files exist already.
    pub fn issue(&self, node: &NodeName, names: &[String], life: Duration) -> Result<Issued, SecurityError> {
        let files = self.files(node.as_str());
        files.must_be_new()?;
        let authority = self.files("ca");
        let read = |path: &Path| {
            fs::read_to_string(path).map_err(|source| SecurityError::Read {
                what: "there is no authority here, make one with skein certs init:",
                path: path.to_owned(),
                source,
            })
        };
        let signer = KeyPair::from_pem(&read(&authority.key)?).map_err(invalid)?;
        let issuer = Issuer::from_ca_cert_pem(&read(&authority.cert)?, signer).map_err(invalid)?;
        let mut params = params(node.as_str(), life)?;
        if let Ok(name) = subject(node.as_str()) {
            params.subject_alt_names.push(name);
        }
        for name in names {
            params.subject_alt_names.push(subject(name)?);
        }
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().map_err(invalid)?;
        let cert = params.signed_by(&key, &issuer).map_err(invalid)?;
        files.write(&cert.pem(), &key)
    }
}

/// A name or address as certificates have it.
fn subject(name: &str) -> Result<SanType, SecurityError> {
    let refuse = || SecurityError::Invalid(format!("{name:?} is neither a host name nor an IP address"));
    if let Ok(address) = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    let name = DnsName::try_from(name).map_err(|_| refuse())?;
    Ok(SanType::DnsName(name.as_ref().try_into().map_err(|_| refuse())?))
}

fn params(name: &str, life: Duration) -> Result<CertificateParams, SecurityError> {
    let mut params = CertificateParams::new(Vec::new()).map_err(invalid)?;
    params.distinguished_name.push(DnType::CommonName, name);
    let now = SystemTime::now();
    params.not_before = (now - EARLIER).into();
    let end = now.checked_add(life).filter(|_| life <= Duration::from_secs(100 * 366 * 24 * 3600));
    params.not_after = end.ok_or_else(|| invalid("valid for at most 100 years"))?.into();
    Ok(params)
}

impl Issued {
    fn must_be_new(&self) -> Result<(), SecurityError> {
        match [&self.cert, &self.key].into_iter().find(|path| path.symlink_metadata().is_ok()) {
            None => Ok(()),
            Some(path) => Err(exists(path)),
        }
    }

    /// The key first: a certificate without its key would be of no use.
    fn write(self, cert: &str, key: &KeyPair) -> Result<Issued, SecurityError> {
        write_new(&self.key, &key.serialize_pem(), 0o600)?;
        write_new(&self.cert, cert, 0o644)?;
        Ok(self)
    }
}

fn exists(path: &Path) -> SecurityError {
    let why = "it exists already, and is not replaced: move it away first".into();
    SecurityError::Write { path: path.to_owned(), why }
}

fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), SecurityError> {
    let written =
        fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        });
    written.map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => exists(path),
        _ => SecurityError::Write { path: path.to_owned(), why: error.to_string() },
    })
}
