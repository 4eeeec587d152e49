//! What happens to a cluster in a round.

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use super::nodes::Nodes;

/// One kind of misfortune.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    KillPrimary,
    KillFollower,
    /// SIGSTOP, later SIGCONT: it wakes up in a world that went on.
    PausePrimary,
    CutOffPrimary,
    /// Nothing that the primary sends arrives; it hears the others.
    MutePrimary,
    /// Nothing arrives at the primary; the others hear it.
    DeafPrimary,
    CutOffFollower,
    KillAll,
    /// SIGTERM: an end in order.
    EndPrimary,
    /// The clocks of the nodes jump apart, by hours: the primary's ahead, the others' back.
    JumpClocks,
}

const KINDS: [Kind; 10] = [
    Kind::KillPrimary,
    Kind::KillFollower,
    Kind::PausePrimary,
    Kind::CutOffPrimary,
    Kind::MutePrimary,
    Kind::DeafPrimary,
    Kind::CutOffFollower,
    Kind::KillAll,
    Kind::EndPrimary,
    Kind::JumpClocks,
];

/// How many kinds there are: as many rounds of seeds that follow one another meet each of them.
pub const KINDS_COUNT: u64 = KINDS.len() as u64;

/// A kind of misfortune and whom it meets.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    pub kind: Kind,
    pub primary: usize,
    pub follower: usize,
}

impl Kind {
    /// The kind of a seed: each once, in a drawn order, then each once again in another. `SKEIN_CLUSTER_FAULT` names
    /// one that is to happen in every round.
    pub fn of(seed: u64) -> Self {
        if let Ok(name) = std::env::var("SKEIN_CLUSTER_FAULT") {
            let named = KINDS.into_iter().find(|kind| format!("{kind:?}") == name);
            return named.unwrap_or_else(|| panic!("SKEIN_CLUSTER_FAULT={name} is none of {KINDS:?}"));
        }
        let mut kinds = KINDS;
        kinds.shuffle(&mut StdRng::seed_from_u64(seed / KINDS_COUNT));
        kinds[usize::try_from(seed % KINDS_COUNT).expect("few")]
    }
}

impl Fault {
    /// Lets it happen.
    ///
    /// # Errors
    /// Where a node does not end as it should.
    pub fn strike(self, nodes: &mut Nodes) -> Result<(), String> {
        let Self { primary, follower, .. } = self;
        let others = (0..nodes.len()).filter(|index| *index != primary);
        match self.kind {
            Kind::KillPrimary => nodes.kill9(primary),
            Kind::KillFollower => nodes.kill9(follower),
            Kind::PausePrimary => nodes.pause(primary),
            Kind::CutOffPrimary => nodes.network.cut_off(primary),
            Kind::MutePrimary => others.for_each(|other| nodes.network.cut_one_way(primary, other)),
            Kind::DeafPrimary => others.for_each(|other| nodes.network.cut_one_way(other, primary)),
            Kind::CutOffFollower => nodes.network.cut_off(follower),
            Kind::KillAll => (0..nodes.len()).for_each(|index| nodes.kill9(index)),
            Kind::EndPrimary => nodes.terminate(primary)?,
            Kind::JumpClocks => (0..nodes.len()).for_each(|index| {
                let hours = if index == primary { 2 } else { -1 - i64::try_from(index).expect("few") };
                nodes.set_clock(index, hours * 3600);
            }),
        }
        Ok(())
    }

    /// The nodes whose daemon does not run while it lasts.
    pub fn down(self, nodes: &Nodes) -> Vec<usize> {
        match self.kind {
            Kind::KillPrimary | Kind::EndPrimary => vec![self.primary],
            Kind::KillFollower => vec![self.follower],
            Kind::KillAll => (0..nodes.len()).collect(),
            _ => Vec::new(),
        }
    }

    /// The nodes that still reach one another and are a majority: they must have a primary before it ends.
    /// None where it may be over before they have found one.
    pub fn majority(self, nodes: &Nodes) -> Vec<usize> {
        let without = |lost| (0..nodes.len()).filter(|index| *index != lost).collect();
        match self.kind {
            Kind::KillFollower | Kind::CutOffFollower => without(self.follower),
            Kind::PausePrimary | Kind::KillAll => Vec::new(),
            Kind::JumpClocks => (0..nodes.len()).collect(),
            _ => without(self.primary),
        }
    }

    /// Lets the world be whole again, daemons that ended excepted.
    pub fn heal(self, nodes: &mut Nodes) {
        if self.kind == Kind::PausePrimary {
            nodes.resume(self.primary);
        }
        if self.kind == Kind::JumpClocks {
            (0..nodes.len()).for_each(|index| nodes.set_clock(index, 0));
        }
        nodes.network.heal();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_that_follow_one_another_meet_every_kind_and_the_same_ones_again() {
        for block in 0..5 {
            let seeds = block * KINDS_COUNT..(block + 1) * KINDS_COUNT;
            let drawn: Vec<_> = seeds.clone().map(Kind::of).collect();
            assert!(KINDS.iter().all(|kind| drawn.contains(kind)), "{drawn:?}");
            assert_eq!(drawn, seeds.map(Kind::of).collect::<Vec<_>>());
        }
        let orders: Vec<Vec<_>> = (0..5)
            .map(|block| (0..KINDS_COUNT).map(|n| Kind::of(block * KINDS_COUNT + n)).collect())
            .collect();
        assert!(orders.windows(2).any(|pair| pair[0] != pair[1]));
    }
}
