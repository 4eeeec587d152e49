use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::store::{Member, Standing};
use crate::types::{LogIndex, NodeId, NodeName, Role};

/// Who follows this node, and how far each one is.
#[derive(Default)]
pub struct Followers {
    seats: Mutex<Seats>,
}

#[derive(Default)]
struct Seats {
    drawn: u64,
    by_node: HashMap<NodeId, Seat>,
}

struct Seat {
    number: u64,
    name: NodeName,
    addr: String,
    acked: LogIndex,
    heard: Instant,
    connected: bool,
    /// Sent and not acknowledged: last index of a batch, and when it was sent.
    unacked: VecDeque<(LogIndex, Instant)>,
}

/// One follower's line in the registry, for as long as it is connected.
pub(super) struct Ticket {
    followers: Arc<Followers>,
    node: NodeId,
    number: u64,
}

impl Followers {
    /// A follower that was silent for longer is not healthy.
    const SILENCE_MAX: Duration = Duration::from_secs(3);
    /// Those that left are listed until they are removed, or so many others left after them.
    const REMEMBERED_MAX: usize = 256;
    /// Batches per follower whose age is known.
    const UNACKED_MAX: usize = 1024;

    fn seats(&self) -> MutexGuard<'_, Seats> {
        self.seats.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Lists a follower that holds everything before `from`; a node that comes again replaces its old line.
    pub(super) fn join(
        self: &Arc<Self>,
        node: NodeId,
        name: NodeName,
        addr: String,
        from: LogIndex,
    ) -> Ticket {
        let mut seats = self.seats();
        let gone = seats.by_node.iter().filter(|(_, seat)| !seat.connected);
        let longest = gone.clone().min_by_key(|(_, seat)| seat.heard).map(|(node, _)| *node);
        if let Some(longest) = longest.filter(|_| gone.count() >= Self::REMEMBERED_MAX) {
            seats.by_node.remove(&longest);
        }
        seats.drawn += 1;
        let number = seats.drawn;
        let seat = Seat {
            number,
            name,
            addr,
            acked: LogIndex::new(from.get().saturating_sub(1)),
            heard: Instant::now(),
            connected: true,
            unacked: VecDeque::new(),
        };
        seats.by_node.insert(node, seat);
        Ticket { followers: self.clone(), node, number }
    }

    /// The followers as `skein status` shows them, by name; `applied` is this node's last applied entry.
    pub fn members(&self, applied: LogIndex) -> Vec<Member> {
        let mut members: Vec<Member> = self
            .seats()
            .by_node
            .values()
            .map(|seat| Member {
                name: seat.name.clone(),
                role: Role::Replica,
                addr: seat.addr.clone(),
                healthy: seat.connected && seat.heard.elapsed() < Self::SILENCE_MAX,
                lag: seat.lag(applied),
                lag_entries: applied.get().saturating_sub(seat.acked.get()),
                standing: Standing::Follows,
            })
            .collect();
        members.sort_by(|a, b| a.name.cmp(&b.name));
        members
    }

    /// Does not list a node any more that has left; whether there was one.
    pub fn forget(&self, name: &NodeName) -> bool {
        let mut seats = self.seats();
        let before = seats.by_node.len();
        seats.by_node.retain(|_, seat| seat.connected || seat.name != *name);
        seats.by_node.len() != before
    }

    /// Whether another node than `node` follows under this name, and was heard of lately.
    pub(super) fn is_taken(&self, name: &NodeName, node: NodeId) -> bool {
        let heard = |seat: &Seat| seat.connected && seat.heard.elapsed() < Self::SILENCE_MAX;
        self.seats().by_node.iter().any(|(other, seat)| *other != node && seat.name == *name && heard(seat))
    }

    /// The lowest entry a connected follower still needs, `None` without one.
    pub fn lowest_needed(&self) -> Option<LogIndex> {
        self.seats().by_node.values().filter(|seat| seat.connected).map(|seat| seat.acked.next()).min()
    }
}

impl Seat {
    fn lag(&self, applied: LogIndex) -> Option<Duration> {
        match self.unacked.front() {
            // What a node that is gone has is not known.
            _ if !self.connected => None,
            Some((_, sent)) => Some(sent.elapsed()),
            None => (self.acked >= applied).then_some(Duration::ZERO),
        }
    }
}

impl Ticket {
    fn with(&self, change: impl FnOnce(&mut Seat)) {
        if let Some(seat) = self.followers.seats().by_node.get_mut(&self.node) {
            // The same node may have come again over another connection.
            if seat.number == self.number {
                change(seat);
            }
        }
    }

    /// A batch up to `index` goes out.
    pub(super) fn sent(&self, index: LogIndex) {
        self.with(|seat| {
            if seat.acked >= index {
                return;
            }
            if seat.unacked.len() < Followers::UNACKED_MAX {
                seat.unacked.push_back((index, Instant::now()));
            } else if let Some(last) = seat.unacked.back_mut() {
                last.0 = index;
            }
        });
    }

    /// The follower has applied everything up to `index`.
    pub(super) fn acked(&self, index: LogIndex) {
        self.with(|seat| {
            seat.heard = Instant::now();
            seat.acked = seat.acked.max(index);
            while seat.unacked.front().is_some_and(|(sent, _)| *sent <= seat.acked) {
                seat.unacked.pop_front();
            }
        });
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.with(|seat| seat.connected = false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_follower_lags_from_the_first_unacknowledged_batch_and_is_listed_until_forgotten() {
        let followers = Arc::new(Followers::default());
        let at = LogIndex::new;
        let ticket = followers.join(NodeId::new(7), "r1".parse().unwrap(), "h:1".into(), at(5));
        assert_eq!(followers.lowest_needed(), Some(at(5)));
        let member = followers.members(at(4)).remove(0);
        assert_eq!((member.healthy, member.lag, member.lag_entries), (true, Some(Duration::ZERO), 0));
        ticket.sent(at(6));
        let member = followers.members(at(6)).remove(0);
        assert_eq!(member.lag_entries, 2);
        assert!(member.lag.is_some());
        ticket.acked(at(6));
        assert_eq!(followers.members(at(6))[0].lag, Some(Duration::ZERO));
        let again = followers.join(NodeId::new(7), "r1".parse().unwrap(), String::new(), at(7));
        drop(ticket);
        assert!(followers.members(at(6))[0].healthy, "the old connection's end does not end the new one");
        drop(again);
        assert!(!followers.members(at(6))[0].healthy);
        assert_eq!(followers.lowest_needed(), None);
        assert_eq!(followers.members(at(6))[0].lag, None, "what it has is not known");
        assert!(followers.forget(&"r1".parse().unwrap()) && followers.members(at(6)).is_empty());
    }

    #[test]
    fn a_name_is_taken_while_another_node_has_it() {
        let followers = Arc::new(Followers::default());
        let (name, at) = ("r1".parse().unwrap(), LogIndex::new(1));
        let ticket = followers.join(NodeId::new(7), "r1".parse().unwrap(), "h:1".into(), at);
        assert!(followers.is_taken(&name, NodeId::new(8)) && !followers.is_taken(&name, NodeId::new(7)));
        assert!(!followers.forget(&name), "it is there");
        drop(ticket);
        assert!(!followers.is_taken(&name, NodeId::new(8)));
    }
}
