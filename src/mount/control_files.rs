//! Contents of `.primary`, `.lag` and `<db>-pos`, as LiteFS has them, so that programs written for it work unchanged.

use std::time::Duration;

use crate::store::PrimaryInfo;
use crate::types::{Access, Pos};

/// Size of `<db>-pos` in bytes: 16 hex digits, a slash, 16 hex digits, a newline.
pub(super) const POS_SIZE: u64 = 34;

/// The content of `<db>-pos`.
pub(super) fn pos(pos: Pos) -> Vec<u8> {
    format!("{pos}\n").into_bytes()
}

/// The content of `.primary`: the advertised host, nothing where the primary is not known; no such file on the primary, and
/// there only, because programs take its absence for leave to write.
pub(super) fn primary(access: Access, primary: Option<&PrimaryInfo>) -> Option<Vec<u8>> {
    if access == Access::Write {
        return None;
    }
    Some(primary.map_or_else(Vec::new, |primary| format!("{}\n", primary.host()).into_bytes()))
}

/// The content of `.lag`: milliseconds with a sign, at least nine digits; 2147483647 where this node never had everything.
///
/// Source: LiteFS's fuse/lag_node.go, `"%+010d\n"`.
pub(super) fn lag(lag: Option<Duration>) -> Vec<u8> {
    let ms = lag.and_then(|lag| i32::try_from(lag.as_millis()).ok()).unwrap_or(i32::MAX);
    format!("{ms:+010}\n").into_bytes()
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
    fn lag_is_in_milliseconds() {
        assert_eq!(lag(Some(Duration::ZERO)), b"+000000000\n");
        assert_eq!(lag(Some(Duration::from_millis(1234))), b"+000001234\n");
        assert_eq!(lag(None), b"+2147483647\n");
        assert_eq!(lag(Some(Duration::MAX)), b"+2147483647\n");
    }

    #[test]
    fn primary_is_the_advertised_host_without_the_port() {
        assert_eq!(primary(Access::Fenced, Some(&info("db1.example:20203"))).unwrap(), b"db1.example\n");
        assert_eq!(primary(Access::ReadOnly, Some(&info("[::1]:20203"))).unwrap(), b"::1\n");
    }

    #[test]
    fn there_is_no_primary_file_on_the_primary_and_an_empty_one_without_one() {
        assert_eq!(primary(Access::Write, Some(&info("a:1"))), None);
        assert_eq!(primary(Access::Fenced, None), Some(Vec::new()));
    }
}
