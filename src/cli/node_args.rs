use std::path::PathBuf;

use clap::Args;

use crate::http::{Client, ClientError, Credentials};
use crate::security::{SecurityError, Token};

/// The node a client command talks to.
#[derive(Args, Debug)]
pub(super) struct NodeArgs {
    /// URL of the node's API
    #[arg(
        long,
        env = "SKEIN_URL",
        value_name = "URL",
        default_value = "http://127.0.0.1:20202",
        global = true
    )]
    url: String,
    /// File with the token that the node wants to see [default: the token in SKEIN_TOKEN]
    #[arg(long, env = "SKEIN_TOKEN_FILE", value_name = "FILE", global = true)]
    token_file: Option<PathBuf>,
    /// Authority of the nodes' certificates, for https URLs
    #[arg(long, env = "SKEIN_CA", value_name = "FILE", global = true)]
    ca: Option<String>,
}

impl NodeArgs {
    /// A client of that node.
    pub(super) fn client(&self) -> Result<Client, ClientError> {
        let token = match (&self.token_file, std::env::var("SKEIN_TOKEN")) {
            (Some(path), _) => Some(Token::read(path)?),
            (None, Ok(text)) if !text.is_empty() => {
                Some(Token::new(&text).map_err(|why| SecurityError::Invalid(format!("SKEIN_TOKEN: {why}")))?)
            }
            (None, _) => None,
        };
        Client::with(&self.url, Credentials { token, ca: self.ca.clone() })
    }
}
