//! `__txid`: what a client wrote last, so that it reads it on every node.
//!
//! The value is LiteFS's for one database: its TXID, 16 hex digits. For several it is `NAME:TXID` of each, joined by
//! `&`, with all but letters, digits, `.`, `_` and `-` of a name percent-encoded.

use std::fmt::Write as _;

use hyper::HeaderMap;
use hyper::header::{COOKIE, HeaderValue};

use crate::types::{DbName, Txid};

const NAME: &str = "__txid";
/// How long a client keeps it: by then every node has what it wrote, or is not asked.
const MAX_AGE_SECONDS: u32 = 300;

/// What a request's cookie says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Seen {
    /// There is none.
    Nothing,
    /// The client wrote these.
    Wrote(Vec<(DbName, Txid)>),
    /// It is not one of ours.
    Invalid,
}

/// What the client that sent these headers wrote, of the databases `dbs`; others are none of this proxy's business.
pub(super) fn read(headers: &HeaderMap, dbs: &[DbName]) -> Seen {
    let lines = headers.get_all(COOKIE).iter().filter_map(|line| line.to_str().ok());
    let mut values = lines
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .filter(|(name, _)| *name == NAME)
        .map(|(_, value)| value);
    let Some(value) = values.next() else { return Seen::Nothing };
    match parse(value, dbs) {
        Some(wrote) if wrote.is_empty() => Seen::Nothing,
        Some(wrote) => Seen::Wrote(wrote),
        None => Seen::Invalid,
    }
}

/// What the client that sent these headers wrote of one database, by the cookie of any proxy.
pub fn seen_in_cookie(headers: &HeaderMap, db: &DbName) -> Option<Txid> {
    match read(headers, std::slice::from_ref(db)) {
        Seen::Wrote(wrote) => wrote.first().map(|(_, txid)| *txid),
        Seen::Nothing | Seen::Invalid => None,
    }
}

/// `Set-Cookie` for a client that has seen these.
pub(super) fn set(seen: &[(DbName, Txid)], dbs: &[DbName]) -> Option<HeaderValue> {
    let value = match (seen, dbs) {
        ([], _) => return None,
        ([(_, txid)], [_]) => txid.to_string(),
        _ => {
            let parts: Vec<_> = seen.iter().map(|(db, txid)| format!("{}:{txid}", encode(db))).collect();
            parts.join("&")
        }
    };
    HeaderValue::try_from(format!("{NAME}={value}; Path=/; Max-Age={MAX_AGE_SECONDS}; HttpOnly")).ok()
}

/// `Set-Cookie` that makes a client forget it.
pub(super) fn clear() -> HeaderValue {
    HeaderValue::from_static("__txid=; Path=/; Max-Age=0; HttpOnly")
}

fn parse(value: &str, dbs: &[DbName]) -> Option<Vec<(DbName, Txid)>> {
    if let ([db], None) = (dbs, value.find(':')) {
        return Some(txid(value)?.map(|txid| (db.clone(), txid)).into_iter().collect());
    }
    let mut wrote = Vec::new();
    for part in value.split('&') {
        let (name, text) = part.rsplit_once(':')?;
        let txid = txid(text)?;
        if let (Some(db), Some(txid)) = (dbs.iter().find(|db| encode(db) == name), txid) {
            wrote.push((db.clone(), txid));
        }
    }
    Some(wrote)
}

/// Sixteen hex digits; zeros are no transaction.
fn txid(text: &str) -> Option<Option<Txid>> {
    let hex = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    hex.then(|| u64::from_str_radix(text, 16).ok().and_then(Txid::new))
}

fn encode(db: &DbName) -> String {
    let mut out = String::with_capacity(db.as_str().len());
    for byte in db.as_str().bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'_' | b'-' => out.push(char::from(byte)),
            // Writing to a String does not fail.
            _ => drop(write!(out, "%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn db(name: &str) -> DbName {
        DbName::new(name).unwrap()
    }

    fn of(line: &str, dbs: &[DbName]) -> Seen {
        let mut headers = HeaderMap::new();
        headers.insert(COOKIE, line.parse().unwrap());
        read(&headers, dbs)
    }

    fn value(cookie: &HeaderValue) -> String {
        cookie.to_str().unwrap().split(';').next().unwrap().to_owned()
    }

    #[test]
    fn one_database_is_written_as_litefs_does() {
        let dbs = [db("app.db")];
        let wrote = vec![(db("app.db"), Txid::new(0x2a).unwrap())];
        let cookie = set(&wrote, &dbs).unwrap();
        assert_eq!(cookie, "__txid=000000000000002a; Path=/; Max-Age=300; HttpOnly");
        assert_eq!(of("a=b; __txid=000000000000002a; c", &dbs), Seen::Wrote(wrote));
        assert_eq!(of("__txid=0000000000000000", &dbs), Seen::Nothing);
        assert_eq!(of("x__txid=000000000000002a", &dbs), Seen::Nothing);
    }

    #[test]
    fn several_databases_are_named() {
        let dbs = [db("a.db"), db("tenants/7 é:&.db")];
        let wrote: Vec<_> = (5..).zip(&dbs).map(|(n, db)| (db.clone(), Txid::new(n).unwrap())).collect();
        let cookie = value(&set(&wrote, &dbs).unwrap());
        assert_eq!(of(&cookie, &dbs), Seen::Wrote(wrote.clone()));
        // Another configuration knows others, and those in another order.
        let dbs = [dbs[1].clone(), db("new.db")];
        assert_eq!(of(&cookie, &dbs), Seen::Wrote(wrote[1..].to_vec()));
        assert_eq!(of(&cookie, &dbs[..1]), Seen::Wrote(wrote[1..].to_vec()));
        assert_eq!(set(&[], &dbs), None);
    }

    #[test]
    fn what_is_not_ours_is_invalid() {
        let (one, two) = ([db("a.db")], [db("a.db"), db("b.db")]);
        for bad in ["", "2a", "000000000000002g", "+00000000000002a", "a.db:", "a.db:xyz&", "&", "::"] {
            assert_eq!(of(&format!("__txid={bad}"), &one), Seen::Invalid, "{bad:?}");
        }
        assert_eq!(of("__txid=000000000000002a", &two), Seen::Invalid, "of which database?");
    }
}
