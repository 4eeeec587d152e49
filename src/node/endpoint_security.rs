//! What keeps strangers out of this node's two ports.

use std::sync::Arc;

use super::{NodeError, hostname};
use crate::config::Settings;
use crate::http::Protection;
use crate::security::{Certificates, Peering, SecurityError, TokenKey};

/// The doors of a node.
pub(super) struct EndpointSecurity {
    /// Of gRPC, and the keys to those of the others.
    pub(super) peering: Peering,
    /// Of the API.
    pub(super) http: Protection,
    /// TLS of the API.
    pub(super) http_tls: Option<Arc<Certificates>>,
}

impl EndpointSecurity {
    /// Reads the certificates.
    ///
    /// # Errors
    /// Where they are not usable.
    pub(super) fn load(settings: &Settings) -> Result<Self, NodeError> {
        let security = &settings.security;
        check_names(settings)?;
        let certificates = security.certificates.clone().map(Certificates::load).transpose()?.map(Arc::new);
        if certificates.is_none() && security.join_token.is_none() && !settings.listen.is_loopback() {
            tracing::warn!(
                "whoever reaches --listen {} may join the cluster and read and change everything (--insecure)",
                settings.listen
            );
        }
        let names = [Some(hostname()), settings.advertise_http.as_deref().and_then(host_of)];
        let signed = settings.sql.jwt_key_file.as_deref().map(TokenKey::read).transpose()?;
        let http = Protection {
            signed,
            cors_origins: settings.sql.cors_origins.clone(),
            read: security.read_token.clone(),
            admin: security.admin_token.clone(),
            loopback_names: settings.http.is_loopback().then(|| names.into_iter().flatten().collect()),
        };
        let http_tls = certificates.clone().filter(|_| security.https);
        Ok(Self { peering: Peering::new(certificates, security.join_token.clone()), http, http_tls })
    }
}

/// Refuses a certificate that is not valid for the address that others are told: they would not believe this node.
///
/// # Errors
/// Where that is so, or the certificate cannot be read.
pub(super) fn check_names(settings: &Settings) -> Result<(), NodeError> {
    let Some(files) = &settings.security.certificates else { return Ok(()) };
    let told = match &settings.advertise {
        Some(address) => address.clone(),
        None if settings.listen.is_unspecified() => settings.listen.at_host(&hostname()),
        None => settings.listen.clone(),
    };
    if files.covers(told.host())? {
        return Ok(());
    }
    let (host, name) = (told.host(), &settings.name);
    Err(NodeError::Security(SecurityError::Invalid(format!(
        "the certificate of --tls-cert is not valid for {host}, the address of this node that others dial: issue one with skein certs issue {name} --address {host}, or give --advertise an address it is valid for"
    ))))
}

/// The host in a URL.
fn host_of(url: &str) -> Option<String> {
    let authority = url.split_once("://")?.1.split('/').next()?;
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    (!host.is_empty()).then(|| host.to_owned())
}
