use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode};
use serde::Deserialize;

use super::{SecurityError, SqlGrant, SqlRight};
use crate::types::Globs;

/// The public key by which signed tokens are believed: JSON Web Tokens with EdDSA, as libSQL's server takes them.
///
/// A token has `"a": "ro"` or `"rw"` for every database, and `"p": {"ro": {"ns": [..]}, "rw": {"ns": [..]}}` for those
/// that the patterns name; without either it allows everything. `exp` is the second at which it ends.
#[derive(Clone)]
pub struct TokenKey(Arc<DecodingKey>);

#[derive(Deserialize)]
struct Claims {
    #[serde(default)]
    a: Option<String>,
    #[serde(default)]
    p: Option<Permissions>,
}

#[derive(Deserialize)]
struct Permissions {
    #[serde(default)]
    ro: Option<Databases>,
    #[serde(default)]
    rw: Option<Databases>,
}

#[derive(Deserialize)]
struct Databases {
    #[serde(default)]
    ns: Vec<String>,
}

impl TokenKey {
    /// The key in a file: PEM, or the 32 bytes as base64url without padding.
    ///
    /// # Errors
    /// Where the file cannot be read, or has no such key.
    pub fn read(path: &Path) -> Result<Self, SecurityError> {
        let failed =
            |source| SecurityError::Read { what: "key of signed tokens", path: path.to_owned(), source };
        let text = fs::read_to_string(path).map_err(failed)?;
        let text = text.trim();
        let key = match text.starts_with("-----") {
            true => DecodingKey::from_ed_pem(text.as_bytes()),
            false => DecodingKey::from_ed_components(text),
        };
        let invalid = |why| {
            let path = path.display();
            SecurityError::Invalid(format!("key of signed tokens {path}: not an ed25519 public key: {why}"))
        };
        Ok(Self(Arc::new(key.map_err(invalid)?)))
    }

    /// What a token allows.
    ///
    /// # Errors
    /// Where it is not signed by the key, or its time is over; the text says which.
    pub fn verify(&self, token: &[u8]) -> Result<SqlGrant, String> {
        let token = std::str::from_utf8(token).map_err(|_| "the token is no text".to_owned())?;
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.required_spec_claims.clear();
        validation.validate_nbf = true;
        validation.validate_aud = false;
        let claims = decode::<Claims>(token, &self.0, &validation);
        let Claims { a, p } = claims.map_err(|error| format!("the signed token is refused: {error}"))?.claims;
        let mut grant = match a.as_deref() {
            Some("rw") => SqlGrant::everywhere(SqlRight::Write),
            Some("ro") => SqlGrant::everywhere(SqlRight::Read),
            Some(other) => return Err(format!("the signed token has the permission {other:?}: ro or rw")),
            None if p.is_none() => SqlGrant::everywhere(SqlRight::Write),
            None => SqlGrant::default(),
        };
        let Permissions { ro, rw } = p.unwrap_or(Permissions { ro: None, rw: None });
        for (right, databases) in [(SqlRight::Read, ro), (SqlRight::Write, rw)] {
            let patterns = databases.map(|databases| databases.ns).unwrap_or_default();
            grant = grant.with(right, Globs::new(patterns).map_err(|error| error.to_string())?);
        }
        Ok(grant)
    }
}

impl PartialEq for TokenKey {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenKey(..)")
    }
}
