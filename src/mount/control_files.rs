//! Contents of `.primary` and `<db>-pos`, as LiteFS has them, so that programs written for it work unchanged.

use crate::store::PrimaryInfo;
use crate::types::{Access, Pos};

/// Size of `<db>-pos` in bytes: 16 hex digits, a slash, 16 hex digits, a newline.
pub(super) const POS_SIZE: u64 = 34;

/// The content of `<db>-pos`.
pub(super) fn pos(pos: Pos) -> Vec<u8> {
    format!("{pos}\n").into_bytes()
}

/// The content of `.primary`: the advertised host; no such file on the primary or where the primary is not known.
pub(super) fn primary(access: Access, primary: Option<&PrimaryInfo>) -> Option<Vec<u8>> {
    if access == Access::Write {
        return None;
    }
    let addr = &primary?.addr;
    let host = addr.rsplit_once(':').map_or(addr.as_str(), |(host, _)| host);
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    Some(format!("{host}\n").into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(addr: &str) -> PrimaryInfo {
        PrimaryInfo { name: "a".into(), addr: addr.into(), http: "http://a:20202".into() }
    }

    #[test]
    fn pos_has_always_the_size_it_is_announced_with() {
        assert_eq!(pos(Pos::ZERO), b"0000000000000000/8000000000000000\n");
        assert_eq!(pos(Pos::ZERO).len() as u64, POS_SIZE);
    }

    #[test]
    fn primary_is_the_advertised_host_without_the_port() {
        assert_eq!(primary(Access::Fenced, Some(&info("db1.example:20203"))).unwrap(), b"db1.example\n");
        assert_eq!(primary(Access::ReadOnly, Some(&info("[::1]:20203"))).unwrap(), b"::1\n");
    }

    #[test]
    fn there_is_no_primary_file_on_the_primary_or_without_one() {
        assert_eq!(primary(Access::Write, Some(&info("a:1"))), None);
        assert_eq!(primary(Access::Fenced, None), None);
    }
}
