//! The making of certificates.

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::DnsName;
use x509_parser::extensions::GeneralName;

use super::SecurityError;
use crate::io::durable;
use crate::types::NodeName;

/// A cluster's own authority, in a directory: `ca.pem`, and `ca-key.pem` that signs for new nodes.
///
/// Keys are ECDSA P-256 and readable by their owner alone. Nothing that exists is ever replaced, but a certificate that is
/// renewed.
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
        let mut params = node_params(node, life)?;
        if let Ok(name) = subject(node.as_str()) {
            params.subject_alt_names.push(name);
        }
        for name in names {
            params.subject_alt_names.push(subject(name)?);
        }
        let key = KeyPair::generate().map_err(invalid)?;
        let cert = params.signed_by(&key, &issuer).map_err(invalid)?;
        files.write(&cert.pem(), &key)
    }
}

impl Authority {
    /// Issues `node` another certificate, valid for `life`, at the names of the one it has, with the same key; it takes the
    /// old one's place at once.
    ///
    /// # Errors
    /// Where there is no authority here, or no certificate of the node.
    pub fn renew(&self, node: &NodeName, life: Duration) -> Result<Issued, SecurityError> {
        let files = self.files(node.as_str());
        let authority = self.files("ca");
        let read = |what: &'static str, path: &Path| {
            let failed = |source| SecurityError::Read { what, path: path.to_owned(), source };
            fs::read_to_string(path).map_err(failed)
        };
        let none_here = "there is no authority here, make one with skein certs init:";
        let not_issued = "the node has no certificate here, issue one with skein certs issue:";
        let old = read(not_issued, &files.cert)?;
        let key = KeyPair::from_pem(&read(not_issued, &files.key)?).map_err(invalid)?;
        let signer = KeyPair::from_pem(&read(none_here, &authority.key)?).map_err(invalid)?;
        let issuer = Issuer::from_ca_cert_pem(&read(none_here, &authority.cert)?, signer).map_err(invalid)?;
        let mut params = node_params(node, life)?;
        params.subject_alt_names = names_of(&old)?;
        let cert = params.signed_by(&key, &issuer).map_err(invalid)?;
        durable::write_atomic(&files.cert, cert.pem().as_bytes())
            .and_then(|()| fs::set_permissions(&files.cert, fs::Permissions::from_mode(0o644)))
            .map_err(|error| SecurityError::Write { path: files.cert.clone(), why: error.to_string() })?;
        Ok(files)
    }
}

/// What a node's certificate is for.
fn node_params(node: &NodeName, life: Duration) -> Result<CertificateParams, SecurityError> {
    let mut params = params(node.as_str(), life)?;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

/// The names and addresses that a certificate is valid for.
fn names_of(pem: &str) -> Result<Vec<SanType>, SecurityError> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).map_err(invalid)?;
    let old = pem.parse_x509().map_err(invalid)?;
    let names = old.subject_alternative_name().map_err(invalid)?;
    let mut all = Vec::new();
    for name in names.iter().flat_map(|names| &names.value.general_names) {
        match name {
            GeneralName::DNSName(name) => all.push(subject(name)?),
            GeneralName::IPAddress(bytes) => {
                let four = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
                let address = four.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from));
                all.push(SanType::IpAddress(address.map_err(|_| invalid("an address of another length"))?));
            }
            _ => {
                return Err(invalid(
                    "it has names that skein certs issue does not give: renew it where it was made",
                ));
            }
        }
    }
    Ok(all)
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
