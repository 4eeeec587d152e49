//! How new a database has to be for a client: what it has seen already, and what it asks for.

use std::time::{Duration, Instant};

use axum::http::{HeaderMap, StatusCode};

use super::SqlSite;
use super::refusal::Refusal;
use crate::config::{SqlSettings, parse_duration};
use crate::proxy::seen_in_cookie;
use crate::sql::engine::TXID_HEADER;
use crate::types::{DbName, Txid};

/// `linearizable`: not older than what was committed anywhere when the request came.
pub(super) const CONSISTENCY_HEADER: &str = "skein-consistency";
/// How far behind the node may be, such as `500ms`.
pub(super) const MAX_STALENESS_HEADER: &str = "skein-max-staleness";

/// What a client wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Wanted {
    /// This transaction at least.
    pub txid: Option<Txid>,
    /// Everything that was committed before.
    pub linearizable: bool,
    /// Not further behind.
    pub max_staleness: Option<Duration>,
}

impl Wanted {
    /// What headers, the cookie and the request itself say.
    ///
    /// # Errors
    /// Where a header means nothing.
    pub fn of(
        headers: &HeaderMap,
        db: &DbName,
        seen: Option<u64>,
        settings: &SqlSettings,
    ) -> Result<Self, Refusal> {
        let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or_default());
        let of_header = match text(TXID_HEADER) {
            None => None,
            Some(text) => {
                let hex = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
                let number = hex.then(|| u64::from_str_radix(text, 16).ok()).flatten();
                Some(
                    number
                        .ok_or_else(|| Refusal::invalid(format!("{TXID_HEADER}: 16 hexadecimal digits")))?,
                )
            }
        };
        let linearizable = match text(CONSISTENCY_HEADER) {
            None | Some("local") => false,
            Some("linearizable") => true,
            Some(_) => return Err(Refusal::invalid(format!("{CONSISTENCY_HEADER}: local or linearizable"))),
        };
        let max_staleness = match text(MAX_STALENESS_HEADER) {
            None => settings.max_staleness,
            Some(text) => Some(
                parse_duration(text)
                    .map_err(|why| Refusal::invalid(format!("{MAX_STALENESS_HEADER}: {why}")))?,
            ),
        };
        let cookie = seen_in_cookie(headers, db).map(Txid::get);
        let txid = [seen, of_header, cookie].into_iter().flatten().max().and_then(Txid::new);
        Ok(Self { txid, linearizable, max_staleness })
    }

    /// Waits until this node has it; `false` where the primary has to be asked.
    ///
    /// # Errors
    /// Where nobody can tell what the newest transaction is.
    pub async fn wait(
        self,
        site: &dyn SqlSite,
        db: &DbName,
        settings: &SqlSettings,
    ) -> Result<bool, Refusal> {
        let mut least = self.txid;
        if self.linearizable {
            let newest = site.newest(db.clone()).await;
            let newest = newest.map_err(|error| {
                Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", format!("linearizable: {error}"))
            })?;
            least = least.max(newest);
        }
        let late = |limit| site.node().lag().is_none_or(|lag| lag > limit);
        if self.max_staleness.is_some_and(late) {
            return Ok(false);
        }
        match least {
            None => Ok(true),
            Some(txid) => {
                Ok(site.node().wait_for(db.clone(), txid, Instant::now() + settings.txid_timeout).await)
            }
        }
    }
}
