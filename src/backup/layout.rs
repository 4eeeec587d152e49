//! How the objects of a backup are called: what Litestream 0.5 expects, and our own beside it.
//!
//! ```text
//! skein/lease.json                     who uploads; one for the whole URL
//! DB/0000/MIN-MAX.ltx                  level 0 on S3: as uploaded
//! DB/0002/MIN-MAX.ltx, DB/0003/...     merged; level 1 is never written
//! DB/0009/0000000000000001-MAX.ltx     snapshots
//! DB/ltx/0/MIN-MAX.ltx, ...            the same elsewhere: files, Google Cloud Storage, Azure
//! DB/skein/manifest.json               what the cluster knows about these files
//! ```
//!
//! Litestream lists a level without a delimiter, so that everything below `DB/0000/` whose last component is named like a
//! change set counts as one of that level. A database below the directory of another one must therefore never look like
//! a level: see [`directory_of`].

use crate::ltx::{file_name, parse_file_name};
use crate::types::{DbName, TxidRange};

/// Which of the two ways of naming levels a bucket uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scheme {
    /// `0000`: S3 and what speaks its protocol.
    Hex,
    /// `ltx/0`: files, Google Cloud Storage, Azure.
    Decimal,
}

/// Level of change sets as they were uploaded.
pub const UPLOADED: u8 = 0;
/// Level of merged change sets of some minutes.
pub const MERGED: u8 = 2;
/// Level of merged change sets of an hour.
pub const MERGED_LONG: u8 = 3;
/// Level of snapshots.
pub const SNAPSHOT: u8 = 9;

/// Key of the lease.
pub const LEASE: &str = "skein/lease.json";

/// Components that mean something else where a database or its directory could be.
fn is_reserved(component: &str) -> bool {
    let level = component.len() == 4 && component.bytes().all(|byte| byte.is_ascii_hexdigit());
    level || matches!(component, "ltx" | "skein" | "generations")
}

/// The directory of a database's objects: its name, with bytes that not every bucket takes as `=HH` (quoted-printable),
/// and the first byte of a component that could be taken for something else as well.
pub fn directory_of(db: &DbName) -> String {
    let mut out = String::with_capacity(db.as_str().len());
    for component in db.as_str().split('/') {
        if !out.is_empty() {
            out.push('/');
        }
        let reserved = is_reserved(component);
        for (at, byte) in component.bytes().enumerate() {
            let plain = byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
            match plain && !(reserved && at == 0) {
                true => out.push(char::from(byte)),
                false => out.push_str(&format!("={byte:02X}")),
            }
        }
    }
    out
}

/// The database whose objects are in a directory; `None` where it is no database's.
pub fn database_of(directory: &str) -> Option<DbName> {
    let mut bytes = Vec::with_capacity(directory.len());
    let mut rest = directory.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'=' {
            bytes.push(byte);
            continue;
        }
        let hex = [rest.next()?, rest.next()?];
        bytes.push(u8::from_str_radix(std::str::from_utf8(&hex).ok()?, 16).ok()?);
    }
    let name = DbName::new(&String::from_utf8(bytes).ok()?).ok()?;
    // The one way of writing it.
    (directory_of(&name) == directory).then_some(name)
}

impl Scheme {
    /// Key of a change-set file of the database in `directory`; empty for one at the URL itself.
    pub fn key(self, directory: &str, level: u8, range: TxidRange) -> String {
        let name = file_name(range);
        let below = match self {
            Scheme::Hex => format!("{level:04x}/{name}"),
            Scheme::Decimal => format!("ltx/{level}/{name}"),
        };
        join(directory, &below)
    }

    /// What a key names: directory, level and transactions; `None` where it is no change-set file.
    pub fn parse(self, key: &str) -> Option<(&str, u8, TxidRange)> {
        let mut parts = key.rsplitn(3, '/');
        let (name, level) = (parts.next()?, parts.next()?);
        let before = parts.next().unwrap_or_default();
        let range = parse_file_name(name)?;
        let (directory, level) = match self {
            Scheme::Hex => {
                let lower = level.len() == 4 && level.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
                (before, lower.then(|| u8::from_str_radix(level, 16).ok())??)
            }
            Scheme::Decimal => {
                let directory = match before {
                    "ltx" => "",
                    before => before.strip_suffix("/ltx")?,
                };
                (directory, level.parse().ok()?)
            }
        };
        (level <= SNAPSHOT).then_some((directory, level, range))
    }
}

/// Key of the manifest of the database in `directory`.
pub fn manifest_key(directory: &str) -> String {
    join(directory, "skein/manifest.json")
}

/// The directory whose manifest this is.
pub fn directory_of_manifest(key: &str) -> Option<&str> {
    match key.strip_suffix("skein/manifest.json")? {
        "" => Some(""),
        before => before.strip_suffix('/'),
    }
}

fn join(directory: &str, below: &str) -> String {
    if directory.is_empty() { below.to_owned() } else { format!("{directory}/{below}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Txid;

    fn range(min: u64, max: u64) -> TxidRange {
        TxidRange::new(Txid::new(min).unwrap(), Txid::new(max).unwrap()).unwrap()
    }

    #[test]
    fn directories_round_trip_and_never_look_like_a_level() {
        for (name, directory) in [
            ("app.db", "app.db"),
            ("tenants/7/a b.db", "tenants/7/a=20b.db"),
            ("a/0000/x.db", "a/=30000/x.db"),
            ("skein", "=73kein"),
            ("a/ltx", "a/=6Ctx"),
            ("ä=", "=C3=A4=3D"),
            ("beef", "=62eef"),
            (".x", ".x"),
        ] {
            let db = DbName::new(name).unwrap();
            assert_eq!(directory_of(&db), directory);
            assert_eq!(database_of(directory), Some(db));
        }
        for other in ["", "0000", "a=", "a=2", "a=zz", "=61pp.db", "skein", "a//b"] {
            assert_eq!(database_of(other), None, "{other}");
        }
    }

    #[test]
    fn keys_are_those_of_litestream() {
        let file = range(1, 10);
        assert_eq!(Scheme::Hex.key("db/b", 9, file), "db/b/0009/0000000000000001-000000000000000a.ltx");
        assert_eq!(Scheme::Decimal.key("b", 0, file), "b/ltx/0/0000000000000001-000000000000000a.ltx");
        for scheme in [Scheme::Hex, Scheme::Decimal] {
            for directory in ["", "app.db", "a/b.db"] {
                let key = scheme.key(directory, MERGED, file);
                assert_eq!(scheme.parse(&key), Some((directory, MERGED, file)), "{key}");
            }
        }
        let name = "0000000000000001-000000000000000a.ltx";
        for key in
            [format!("a/0000/{name}.tmp"), format!("a/ltx/0/{name}"), format!("a/000A/{name}"), name.into()]
        {
            assert_eq!(Scheme::Hex.parse(&key), None, "{key}");
        }
        assert_eq!(Scheme::Decimal.parse(&format!("a/x/0/{name}")), None);
    }

    #[test]
    fn manifests_name_their_directory() {
        for directory in ["", "a", "a/b"] {
            assert_eq!(directory_of_manifest(&manifest_key(directory)), Some(directory));
        }
        assert_eq!(directory_of_manifest("askein/manifest.json"), None);
    }
}
