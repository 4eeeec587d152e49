//! Which database a request means.

use axum::http::uri::Authority;
use axum::http::{HeaderMap, StatusCode, header};

use super::SqlSite;
use super::refusal::Refusal;
use crate::types::DbName;

/// By which libSQL's server is told the database, too.
const NAMESPACE_HEADER: &str = "x-namespace";

/// The database of a request: the one in its path, the one in `x-namespace`, the first label of its host where there is
/// a database of that name, the configured one, or the only one.
pub(super) fn database(
    site: &dyn SqlSite,
    path: Option<&str>,
    headers: &HeaderMap,
    configured: Option<&DbName>,
) -> Result<DbName, Refusal> {
    if let Some(name) = path {
        return named(site, name);
    }
    if let Some(name) = headers.get(NAMESPACE_HEADER) {
        let name = name.to_str().map_err(|_| Refusal::invalid("the header x-namespace is no text"))?;
        return named(site, name);
    }
    if let Some(found) = host_label(headers).and_then(|label| known(site, &label)) {
        return Ok(found);
    }
    if let Some(name) = configured {
        return Ok(name.clone());
    }
    match site.first_two().as_slice() {
        [only] => Ok(only.clone()),
        [] => Err(Refusal::new(StatusCode::NOT_FOUND, "DATABASE_NOT_FOUND", "there is no database yet")),
        _ => Err(Refusal::invalid(
            "which database? end the client's URL with /dev/NAME/ (with the slash), or set sql.db",
        )),
    }
}

/// `app` stands for `app.db` where there is no `app`.
fn named(site: &dyn SqlSite, name: &str) -> Result<DbName, Refusal> {
    match known(site, name) {
        Some(found) => Ok(found),
        None => DbName::new(name).map_err(|error| Refusal::invalid(error.to_string())),
    }
}

fn known(site: &dyn SqlSite, name: &str) -> Option<DbName> {
    let candidates = [DbName::new(name), DbName::new(&format!("{name}.db"))];
    candidates.into_iter().flatten().find(|candidate| site.exists(candidate))
}

/// The first label of a host that has several, as `app` of `app.example.com` and of `app.localhost`.
fn host_label(headers: &HeaderMap) -> Option<String> {
    let authority = Authority::try_from(headers.get(header::HOST)?.as_bytes()).ok()?;
    let host = authority.host();
    if host.starts_with('[') || host.parse::<std::net::IpAddr>().is_ok() {
        return None;
    }
    host.split_once('.').map(|(label, _)| label.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_with_labels_names_a_database_and_an_address_none() {
        let label = |host: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().unwrap());
            host_label(&headers)
        };
        assert_eq!(label("app.example.com:8080").as_deref(), Some("app"));
        assert_eq!(label("app.localhost").as_deref(), Some("app"));
        for host in ["127.0.0.1:20202", "[::1]:1", "n1:20202", "localhost"] {
            assert_eq!(label(host), None, "{host}");
        }
    }
}
