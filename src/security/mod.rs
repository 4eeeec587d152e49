//! Who may speak to this node: certificates, tokens, and the connections between nodes.
//!
//! Owns TLS (rustls) and the making of certificates (rcgen), and the comparison of tokens. Decides nothing about what is
//! asked on a connection once it is let in. Called by `raft` and `rpc` for connections between nodes, by `http` for
//! tokens, and by `cli`.

mod alpn;
mod authority;
mod certificates;
mod error;
mod file_change;
mod grant;
mod grpc;
mod node_stream;
mod peering;
mod refusals;
mod signed_token;
mod token;

pub use authority::{Authority, Issued};
pub use certificates::{CertificateFiles, Certificates, WARN_BEFORE, api_client, use_ring};
pub use error::SecurityError;
pub use grant::{SqlGrant, SqlRight};
pub use grpc::{CheckToken, PeerChannel};
pub use node_stream::{MovedStream, NodeStream};
pub use peering::{GREETING_MAX, Peering, Purpose};
pub use refusals::Refusals;
pub use signed_token::TokenKey;
pub use token::{InvalidToken, Token};
