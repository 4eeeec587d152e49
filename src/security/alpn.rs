//! The protocols that share the port between nodes, as TLS tells them apart (RFC 7301, ALPN).

/// The protocol of everything between nodes but Raft's own connections, in TLS's words.
///
/// Source: RFC 7301; "h2" is registered by RFC 9113.
pub(super) const HTTP2: &[u8] = b"h2";
/// The same in TLS's words.
pub(super) const RAFT_PROTOCOL: &[u8] = b"skein-raft-1";
/// What a connection between two proxies is in TLS's words: HTTP/1.1 for the applications behind them.
pub(super) const PROXY_PROTOCOL: &[u8] = b"skein-proxy-1";
/// What a connection to another node's API is in TLS's words: HTTP/1.1, as on the API's own port.
pub(super) const API_PROTOCOL: &[u8] = b"skein-api-1";
