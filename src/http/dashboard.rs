//! `GET /`: what the API says, for people; `GET /console`: SQL for them.

use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::response::{IntoResponse, Response};

/// One page with everything in it.
const PAGE: &str = include_str!("dashboard.html");
/// Another one, which asks by SQL over HTTP.
const CONSOLE: &str = include_str!("console.html");
/// It loads nothing from elsewhere, talks to its own node only, and lives in no other page.
const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The page. It is the same for everybody and says nothing about the node: what it shows it asks the API for, with the
/// reader's token.
pub(super) async fn dashboard() -> Response {
    page(PAGE)
}

/// The page for SQL, likewise.
pub(super) async fn console() -> Response {
    page(CONSOLE)
}

fn page(text: &'static str) -> Response {
    let headers = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (CACHE_CONTROL, "no-cache"),
    ];
    (headers, text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pages_need_nothing_but_themselves_and_the_api() {
        for outside in ["src=\"http", "href=\"http", "@import", "url(http", "//cdn", "innerHTML", "eval("] {
            assert!(!PAGE.contains(outside) && !CONSOLE.contains(outside), "{outside}");
        }
        assert!(!CONSOLE.contains("http://") && !CONSOLE.contains("https://"));
        // The one address in it names a format, and the page asks for paths of its own node only.
        let addresses: Vec<_> = PAGE.match_indices("http").map(|(at, _)| &PAGE[at..at + 26]).collect();
        assert!(addresses.iter().all(|text| text.starts_with("http://www.w3.org/2000/svg")), "{addresses:?}");
    }
}
