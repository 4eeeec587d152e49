//! Who may ask the API what.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use tower_http::timeout::TimeoutBody;

use super::problem::Problem;
use crate::security::{Refusals, SqlGrant, SqlRight, Token, TokenKey};

/// Largest JSON document a client may send, in bytes; databases are streamed and have no limit but the disk.
const DOCUMENT_BYTES_MAX: usize = 64 << 10;
/// How long a client may be silent in the middle of what it sends.
const BODY_SILENCE_MAX: Duration = Duration::from_secs(30);
/// What everybody may see: whether the node lives, and a page that says nothing by itself.
const OPEN: [&str; 6] = ["/livez", READY, "/", "/console", "/v2", "/v3"];
const READY: &str = "/readyz";
/// Where SQL is executed; what a request may do is up to its database.
const SQL: [&str; 5] = ["/v2/pipeline", "/v3/pipeline", "/v3/cursor", "/v1/execute", "/v1/batch"];
/// How long a browser remembers what another site may ask, in seconds.
const CORS_MAX_AGE: &str = "86400";
/// What another site's page may send, and what it may read of the answer.
const CORS_HEADERS: &str = "authorization, content-type, skein-consistency, skein-max-staleness, skein-txid, \
                            x-libsql-client-version, x-namespace";

/// Whose request it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer(pub(super) SocketAddr);

/// Who may ask what.
#[derive(Clone, Debug, Default)]
pub struct Protection {
    /// What lets in who reads; without it the admin token does.
    pub read: Option<Token>,
    /// What lets in who changes something.
    pub admin: Option<Token>,
    /// Where only this machine's programs reach the API: the names it has besides `localhost`.
    pub loopback_names: Option<Vec<String>>,
    /// What signed tokens of SQL are believed by.
    pub signed: Option<TokenKey>,
    /// Other sites whose pages may execute SQL.
    pub cors_origins: Vec<String>,
}

struct Guard {
    protection: Protection,
    refusals: Refusals,
}

/// The router behind its protection: tokens, limits of what is sent, and nothing for other sites' pages in a browser.
pub fn protect(router: Router, protection: Protection) -> Router {
    let guard = Arc::new(Guard { protection, refusals: Refusals::default() });
    router
        .layer(DefaultBodyLimit::max(DOCUMENT_BYTES_MAX))
        .layer(middleware::from_fn_with_state(guard, admit))
}

async fn admit(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    let origin = guard.protection.friendly_origin(request.uri().path(), request.headers());
    if origin.is_some() && request.method() == Method::OPTIONS {
        return for_other_site(StatusCode::NO_CONTENT.into_response(), origin);
    }
    for_other_site(answer(&guard, request, next).await, origin)
}

/// Lets the page of another site read the answer.
fn for_other_site(mut response: Response, origin: Option<HeaderValue>) -> Response {
    let Some(origin) = origin else { return response };
    let headers = response.headers_mut();
    headers.append(header::VARY, HeaderValue::from_static("origin"));
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    for (name, value) in [
        (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST"),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, CORS_HEADERS),
        (header::ACCESS_CONTROL_EXPOSE_HEADERS, "skein-txid"),
        (header::ACCESS_CONTROL_MAX_AGE, CORS_MAX_AGE),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

async fn answer(guard: &Guard, mut request: Request, next: Next) -> Response {
    let method = request.method();
    // Whoever asks for more than the answer to the question shows a token.
    let path = match request.uri().query() {
        Some(_) if request.uri().path() == READY => "/readyz?",
        _ => request.uri().path(),
    };
    let checked = match is_sql(path) {
        true => guard.protection.sql_grant(request.headers()).map(Some),
        false => guard.protection.check(method, path, request.headers()).map(|()| None),
    };
    match checked {
        Ok(grant) => {
            if let Some(grant) = grant {
                let _none_before = request.extensions_mut().insert(grant);
            }
            let silence = |body| Body::new(TimeoutBody::new(BODY_SILENCE_MAX, body));
            next.run(request.map(silence)).await
        }
        Err(refusal) => {
            let peer = request.extensions().get().map_or(IpAddr::from([0, 0, 0, 0]), |Peer(peer)| peer.ip());
            guard.refusals.tell(peer, "a request of the API", refusal.why());
            refusal.into_response()
        }
    }
}

/// Whether SQL is executed at a path.
fn is_sql(path: &str) -> bool {
    SQL.contains(&path) || path.starts_with("/dev/")
}

/// Why a request is not answered.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Refusal {
    NoToken,
    WrongToken,
    OnlyRead,
    NoAdmin,
    OtherSite,
    Unsigned(String),
}

impl Refusal {
    fn why(&self) -> &str {
        match self {
            Refusal::NoToken => {
                "a token is needed: --token-file or SKEIN_TOKEN, `Authorization: Bearer TOKEN`"
            }
            Refusal::WrongToken => "the token is another one",
            Refusal::OnlyRead => "the read token does not allow changes: use the admin token",
            Refusal::NoAdmin => {
                "changes need an admin token, and this node has none: give it --admin-token-file"
            }
            Refusal::OtherSite => {
                "the request comes from another site's page, or names this node by a foreign name"
            }
            Refusal::Unsigned(why) => why,
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = match self {
            Refusal::NoToken | Refusal::WrongToken | Refusal::Unsigned(_) => StatusCode::UNAUTHORIZED,
            Refusal::OnlyRead | Refusal::NoAdmin | Refusal::OtherSite => StatusCode::FORBIDDEN,
        };
        let mut response = Problem::new(status, self.why()).into_response();
        if status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer realm=\"skein\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        }
        response
    }
}

impl Protection {
    fn check(&self, method: &Method, path: &str, headers: &HeaderMap) -> Result<(), Refusal> {
        let reads = matches!(*method, Method::GET | Method::HEAD);
        if reads && OPEN.contains(&path) {
            return Ok(());
        }
        if self.read.is_none() && self.admin.is_none() {
            return if self.is_own(headers, reads) { Ok(()) } else { Err(Refusal::OtherSite) };
        }
        let Some(shown) = bearer(headers) else { return Err(Refusal::NoToken) };
        let is = |token: &Option<Token>| token.as_ref().is_some_and(|token| token.matches(shown));
        match (is(&self.admin), is(&self.read)) {
            (true, _) => Ok(()),
            (false, true) if reads => Ok(()),
            (false, true) if self.admin.is_none() => Err(Refusal::NoAdmin),
            (false, true) => Err(Refusal::OnlyRead),
            (false, false) => Err(Refusal::WrongToken),
        }
    }

    /// What a request may do by SQL.
    fn sql_grant(&self, headers: &HeaderMap) -> Result<SqlGrant, Refusal> {
        if self.read.is_none() && self.admin.is_none() && self.signed.is_none() {
            let own = self.is_own(headers, false) || self.is_friend(headers).is_some();
            let all = SqlGrant::everywhere(SqlRight::Write);
            return if own { Ok(all) } else { Err(Refusal::OtherSite) };
        }
        let shown = bearer(headers).ok_or(Refusal::NoToken)?;
        let is = |token: &Option<Token>| token.as_ref().is_some_and(|token| token.matches(shown));
        if is(&self.admin) {
            return Ok(SqlGrant::everywhere(SqlRight::Write));
        }
        if is(&self.read) {
            return Ok(SqlGrant::everywhere(SqlRight::Read));
        }
        match &self.signed {
            Some(key) => key.verify(shown).map_err(Refusal::Unsigned),
            None => Err(Refusal::WrongToken),
        }
    }

    /// The origin of a request, where it is one whose pages may execute SQL.
    fn is_friend(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let origin = headers.get(header::ORIGIN)?;
        self.cors_origins.iter().any(|known| origin == known.as_str()).then(|| origin.clone())
    }

    fn friendly_origin(&self, path: &str, headers: &HeaderMap) -> Option<HeaderValue> {
        if is_sql(path) { self.is_friend(headers) } else { None }
    }

    /// Without tokens a browser of this machine must not be made to ask for another site: neither by a page that sends
    /// its own `Origin`, nor by a name of that site that leads here.
    fn is_own(&self, headers: &HeaderMap, reads: bool) -> bool {
        let host = headers.get(header::HOST).map(HeaderValue::as_bytes);
        let origin = headers.get(header::ORIGIN).map(HeaderValue::as_bytes);
        let of_host = |origin: &[u8]| {
            let authority =
                [&b"http://"[..], b"https://"].iter().find_map(|scheme| origin.strip_prefix(*scheme));
            authority.is_some() && authority == host
        };
        if !reads && !origin.is_none_or(of_host) {
            return false;
        }
        match (&self.loopback_names, host) {
            (Some(names), Some(host)) => is_local(host, names),
            _ => true,
        }
    }
}

/// Whether nobody else can have this name lead here: an address, a name without a dot, or one of our own.
fn is_local(host: &[u8], names: &[String]) -> bool {
    let Ok(authority) = Authority::try_from(host) else { return false };
    let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
    host.parse::<IpAddr>().is_ok()
        || !host.contains('.')
        || host.ends_with(".localhost")
        || names.iter().any(|name| name.eq_ignore_ascii_case(&host))
}

/// The token that a request shows.
///
/// Source: RFC 6750, section 2.1.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked(b"bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(header::HeaderName, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect()
    }

    fn asked(protection: &Protection, method: &Method, token: &str) -> Result<(), Refusal> {
        let shown = headers(&[(header::AUTHORIZATION, token)]);
        protection.check(method, "/v1/handoff", &shown)
    }

    #[test]
    fn who_reads_needs_a_token_and_who_changes_the_admins() {
        let token = |text| Some(Token::new(text).unwrap());
        let both = Protection { read: token("reads"), admin: token("admin"), ..Protection::default() };
        let nothing = HeaderMap::new();
        for path in OPEN {
            assert_eq!(both.check(&Method::GET, path, &nothing), Ok(()));
        }
        for (method, token, outcome) in [
            (Method::GET, "Bearer reads", Ok(())),
            (Method::GET, "bearer admin", Ok(())),
            (Method::POST, "Bearer admin", Ok(())),
            (Method::POST, "Bearer reads", Err(Refusal::OnlyRead)),
            (Method::OPTIONS, "Bearer reads", Err(Refusal::OnlyRead)),
            (Method::GET, "Bearer read", Err(Refusal::WrongToken)),
            (Method::GET, "Bearer ", Err(Refusal::WrongToken)),
            (Method::GET, "Basic reads", Err(Refusal::NoToken)),
        ] {
            assert_eq!(asked(&both, &method, token), outcome, "{method} {token}");
        }
        assert_eq!(both.check(&Method::GET, "/metrics", &nothing), Err(Refusal::NoToken));
        assert_eq!(both.check(&Method::POST, "/", &nothing), Err(Refusal::NoToken));
        let only_read = Protection { admin: None, ..both };
        assert_eq!(asked(&only_read, &Method::DELETE, "Bearer reads"), Err(Refusal::NoAdmin));
    }

    #[test]
    fn a_browser_does_not_ask_for_another_site() {
        let local =
            Protection { loopback_names: Some(vec!["db.example.com".into()]), ..Protection::default() };
        let check = |method, pairs: &[_]| local.check(method, "/v1/status", &headers(pairs)).is_ok();
        for host in ["127.0.0.1:1", "[::1]:1", "localhost:1", "n1", "a.localhost", "DB.example.com:1"] {
            assert!(check(&Method::GET, &[(header::HOST, host)]), "{host}");
        }
        for host in ["evil.example:1", "127.0.0.1.evil.example", "a b"] {
            assert!(!check(&Method::GET, &[(header::HOST, host)]), "{host}");
        }
        let post = |origin| check(&Method::POST, &[(header::HOST, "localhost:1"), (header::ORIGIN, origin)]);
        assert!(post("http://localhost:1") && check(&Method::POST, &[(header::HOST, "localhost:1")]));
        assert!(!post("http://evil.example") && !post("null") && !post("http://localhost:2"));
    }
}
