use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Tells the operator of those who were refused: the same thing once, not at every attempt.
#[derive(Debug, Default)]
pub struct Refusals {
    told: Mutex<HashMap<(IpAddr, String), Told>>,
}

#[derive(Debug)]
struct Told {
    at: Instant,
    since: u64,
}

/// How long the same thing is not told again.
const SILENCE: Duration = Duration::from_secs(600);
/// Different things remembered; more than that are told by their number only.
const REMEMBERED_MAX: usize = 256;

impl Refusals {
    /// Notes that `peer` was refused `what` because of `why`; a line of the log the first time, and again after ten
    /// minutes with the number of times in between.
    pub fn tell(&self, peer: IpAddr, what: &str, why: &str) {
        if let Some(again) = self.is_news(peer, &format!("{what}{why}"), Instant::now()) {
            match again {
                0 => tracing::warn!(%peer, "refused {what}: {why}"),
                _ => tracing::warn!(%peer, times = again, "refused {what} again: {why}"),
            }
        }
    }

    /// How often it happened since it was told last, where it is to be told now.
    fn is_news(&self, peer: IpAddr, why: &str, now: Instant) -> Option<u64> {
        let mut told = self.told.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let key = (network(peer), why.to_owned());
        if let Some(known) = told.get_mut(&key) {
            known.since += 1;
            if now.duration_since(known.at) < SILENCE {
                return None;
            }
            known.at = now;
            return Some(std::mem::take(&mut known.since));
        }
        if told.len() >= REMEMBERED_MAX {
            told.retain(|_, known| now.duration_since(known.at) < SILENCE);
        }
        if told.len() >= REMEMBERED_MAX {
            return None;
        }
        told.insert(key, Told { at: now, since: 0 });
        Some(0)
    }
}

/// The address, of IPv6 the part that one host has for itself: it may change the rest as it likes.
fn network(peer: IpAddr) -> IpAddr {
    match peer {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_none() => IpAddr::V6((u128::from(v6) >> 64 << 64).into()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_told_once_and_counted_afterwards() {
        let refusals = Refusals::default();
        let (one, other): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let start = Instant::now();
        assert_eq!(refusals.is_news(one, "no", start), Some(0));
        for _ in 0..50 {
            assert_eq!(refusals.is_news(one, "no", start), None);
        }
        assert_eq!(refusals.is_news(other, "no", start), Some(0));
        assert_eq!(refusals.is_news(one, "another", start), Some(0));
        assert_eq!(refusals.is_news(one, "no", start + SILENCE), Some(51));
    }

    #[test]
    fn a_host_with_many_addresses_and_many_hosts_do_not_fill_the_log() {
        let refusals = Refusals::default();
        let now = Instant::now();
        let v6 = |n: u128| IpAddr::V6((0x2001_0db8_u128 << 96 | n).into());
        assert_eq!((0..1000).filter(|n| refusals.is_news(v6(*n), "no", now).is_some()).count(), 1);
        let v4 = |n: u32| IpAddr::V4((0x0a00_0000 + n).into());
        let told = (0..10_000).filter(|n| refusals.is_news(v4(*n), "no", now).is_some()).count();
        assert_eq!(told, REMEMBERED_MAX - 1);
        assert_eq!(refusals.is_news(v4(9_999), "no", now + SILENCE), Some(0));
    }
}
