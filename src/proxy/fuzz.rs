//! Targets for [`crate::fuzz`].

use hyper::HeaderMap;
use hyper::header::{COOKIE, HeaderValue};

use super::cookie::{Seen, read, set};
use crate::types::DbName;

fn databases() -> Vec<DbName> {
    ["app.db", "dir/other db"].map(|name| DbName::new(name).expect("a valid name")).to_vec()
}

/// What a client sends as its cookies.
pub fn cookie(data: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(data) else { return };
    let mut headers = HeaderMap::new();
    headers.insert(COOKIE, value);
    for count in 0..=2 {
        let dbs = &databases()[..count];
        if let Seen::Wrote(seen) = read(&headers, dbs) {
            assert!(seen.iter().all(|(db, _)| dbs.contains(db)));
            let _ = set(&seen, dbs);
        }
    }
}

/// Valid cookies.
pub fn cookies() -> Vec<Vec<u8>> {
    let texts = [
        "__txid=000000000000002a",
        "a=b; __txid=app.db:000000000000002a&dir%2Fother%20db:0000000000000001; c=d",
        "",
    ];
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}
