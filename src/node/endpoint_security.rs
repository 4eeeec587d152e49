//! What keeps strangers out of this node's two ports.

use std::sync::Arc;

use super::{NodeError, hostname};
use crate::config::Settings;
use crate::http::Protection;
use crate::security::{Certificates, Peering, TokenKey};

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

/// The host in a URL.
fn host_of(url: &str) -> Option<String> {
    let authority = url.split_once("://")?.1.split('/').next()?;
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    (!host.is_empty()).then(|| host.to_owned())
}
