//! What a proxy takes from a message's head, and what it adds.
//!
//! Source: RFC 9110 section 7.6.1 (connection-specific fields), the de facto `X-Forwarded-*`.

use std::net::IpAddr;
use std::time::Duration;

use hyper::HeaderMap;
use hyper::header::{
    CONNECTION, EXPECT, HOST, HeaderName, HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE,
};
use hyper::http::request::Parts;

use crate::types::NodeName;

/// How many proxies of this cluster have passed a request on, and whose client it is therefore not.
pub(super) const HOPS: HeaderName = HeaderName::from_static("skein-proxy-hops");
/// On an answer of a proxy: the request never reached an application.
pub(super) const UNSENT: HeaderName = HeaderName::from_static("skein-proxy-unsent");

/// On every answer: the node whose application gave it, or whose proxy did.
pub(super) const NODE: HeaderName = HeaderName::from_static("skein-node");
/// Where the time went, one metric of each proxy that an answer came through.
///
/// Source: W3C Server Timing, section 3.
pub(super) const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
/// On an error of an application that may come from a write where nobody may write.
pub(super) const HINT: HeaderName = HeaderName::from_static("skein-proxy-hint");

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// How often the proxies of this cluster have passed this request on.
pub(super) fn hops(headers: &HeaderMap) -> u32 {
    let told = headers.get(HOPS).and_then(|value| value.to_str().ok()?.parse::<u32>().ok());
    told.unwrap_or(0)
}

/// The protocol the client wants to go over to, where it is one that a proxy may carry.
pub(super) fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let wanted = tokens(headers).any(|token| token.eq_ignore_ascii_case("upgrade"));
    let protocol = headers.get(UPGRADE).filter(|_| wanted)?;
    // HTTP/2 by upgrade is between neighbours, and nobody uses it any more.
    (!protocol.as_bytes().eq_ignore_ascii_case(b"h2c")).then(|| protocol.clone())
}

/// Removes what concerns one connection only; an upgrade to `protocol` is kept.
pub(super) fn strip_connection(headers: &mut HeaderMap, protocol: Option<HeaderValue>) {
    let named: Vec<HeaderName> = tokens(headers).filter_map(|token| token.parse().ok()).collect();
    for name in named {
        headers.remove(name);
    }
    let trailers = headers.get_all(TE).iter().any(|te| te.as_bytes().eq_ignore_ascii_case(b"trailers"));
    for name in
        [CONNECTION, UPGRADE, TE, TRAILER, TRANSFER_ENCODING, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, EXPECT]
    {
        headers.remove(name);
    }
    headers.remove("keep-alive");
    headers.remove("proxy-connection");
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    if let Some(protocol) = protocol {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, protocol);
    }
}

fn tokens(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let lines = headers.get_all(CONNECTION).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim)
}

/// Says on whose behalf a request is passed on; `client` is who sent it to this proxy.
pub(super) fn add_forwarded(head: &mut Parts, client: IpAddr) {
    // HTTP/2 has the host in its target.
    if !head.headers.contains_key(HOST)
        && let Some(host) = head.uri.authority().and_then(|host| host.as_str().parse().ok())
    {
        head.headers.insert(HOST, host);
    }
    let mut chain: Vec<String> = head
        .headers
        .get_all(&FORWARDED_FOR)
        .iter()
        .filter_map(|line| line.to_str().ok().map(str::to_owned))
        .collect();
    chain.push(client.to_canonical().to_string());
    if let Ok(chain) = HeaderValue::try_from(chain.join(", ")) {
        head.headers.insert(FORWARDED_FOR, chain);
    }
    if let Some(host) = head.headers.get(HOST).cloned() {
        head.headers.entry(FORWARDED_HOST).or_insert(host);
    }
    head.headers.entry(FORWARDED_PROTO).or_insert(HeaderValue::from_static("http"));
}

/// Says which node answered, unless another proxy has said it, and how long this one took for it.
pub(super) fn tell_origin(headers: &mut HeaderMap, node: &NodeName, took: Duration) {
    let value = |text: String| HeaderValue::try_from(text).ok();
    if !headers.contains_key(NODE)
        && let Some(name) = value(node.to_string())
    {
        headers.insert(NODE, name);
    }
    let ms = took.as_secs_f64() * 1000.0;
    if let Some(metric) = value(format!("skein;desc=\"{node}\";dur={ms:.3}")) {
        headers.append(SERVER_TIMING, metric);
    }
}

#[cfg(test)]
mod tests {
    use hyper::Request;

    use super::*;

    fn head(fields: &[(&str, &str)]) -> Parts {
        let mut request = Request::get("http://h.example/x");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn what_concerns_one_connection_stays_there() {
        let mut head = head(&[
            ("connection", "close, X-Secret"),
            ("connection", "keep-alive"),
            ("x-secret", "1"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
            ("te", "trailers"),
            ("proxy-authorization", "x"),
            ("upgrade", "websocket"),
            ("x-kept", "1"),
        ]);
        assert_eq!(upgrade(&head.headers), None, "not in Connection");
        strip_connection(&mut head.headers, None);
        let mut names: Vec<_> = head.headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["te", "x-kept"]);
    }

    #[test]
    fn an_upgrade_is_carried_but_not_to_http2() {
        let mut websocket = head(&[("connection", "Upgrade"), ("upgrade", "websocket")]);
        let protocol = upgrade(&websocket.headers);
        assert_eq!(protocol.as_ref().unwrap(), "websocket");
        strip_connection(&mut websocket.headers, protocol);
        assert_eq!(websocket.headers[UPGRADE], "websocket");
        assert_eq!(websocket.headers[CONNECTION], "upgrade");
        let h2c = head(&[("connection", "Upgrade, HTTP2-Settings"), ("upgrade", "h2c")]);
        assert_eq!(upgrade(&h2c.headers), None);
    }

    #[test]
    fn the_client_is_appended_and_the_first_host_kept() {
        let mut direct = head(&[]);
        add_forwarded(&mut direct, "::ffff:10.0.0.1".parse().unwrap());
        assert_eq!(direct.headers[FORWARDED_FOR], "10.0.0.1");
        assert_eq!(direct.headers[HOST], "h.example");
        assert_eq!(direct.headers[FORWARDED_HOST], "h.example");
        assert_eq!(direct.headers[FORWARDED_PROTO], "http");
        let mut behind =
            head(&[("x-forwarded-for", "1.1.1.1"), ("x-forwarded-for", "2.2.2.2"), ("host", "in.example")]);
        behind.headers.insert(FORWARDED_PROTO, HeaderValue::from_static("https"));
        behind.headers.insert(FORWARDED_HOST, HeaderValue::from_static("out.example"));
        add_forwarded(&mut behind, "10.0.0.1".parse().unwrap());
        assert_eq!(behind.headers[FORWARDED_FOR], "1.1.1.1, 2.2.2.2, 10.0.0.1");
        assert_eq!(behind.headers.get_all(FORWARDED_FOR).iter().count(), 1);
        assert_eq!(behind.headers[FORWARDED_HOST], "out.example");
        assert_eq!(behind.headers[FORWARDED_PROTO], "https");
    }

    #[test]
    fn the_node_that_answered_is_named_once_and_each_proxy_tells_its_time() {
        let mut headers = HeaderMap::new();
        headers.append(SERVER_TIMING, HeaderValue::from_static("db;dur=1"));
        tell_origin(&mut headers, &"n1".parse().unwrap(), Duration::from_micros(1500));
        tell_origin(&mut headers, &"n2".parse().unwrap(), Duration::from_millis(2));
        assert_eq!(headers[NODE], "n1");
        let times: Vec<_> = headers.get_all(SERVER_TIMING).iter().collect();
        assert_eq!(times, ["db;dur=1", "skein;desc=\"n1\";dur=1.500", "skein;desc=\"n2\";dur=2.000"]);
    }

    #[test]
    fn hops_are_counted_and_nonsense_is_none() {
        assert_eq!(hops(&head(&[("skein-proxy-hops", "2")]).headers), 2);
        assert_eq!(hops(&head(&[("skein-proxy-hops", "-1")]).headers), 0);
        assert_eq!(hops(&head(&[]).headers), 0);
    }
}
