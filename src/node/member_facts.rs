//! What the members say of themselves, asked for when somebody wants to see it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use futures::StreamExt;
use tokio::sync::Mutex;

use crate::rpc;
use crate::security::Peering;
use crate::store::{Member, NodeFacts};
use crate::types::NodeName;

/// An answer is as old as this at most; a node that did not answer is not asked again for as long.
const FRESH: Duration = Duration::from_secs(10);
/// How long a node has to answer before its facts are unknown: an operator waits for this.
const ANSWER_MAX: Duration = Duration::from_millis(300);
/// Nodes asked at a time.
const ASKED_AT_A_TIME: usize = 32;

/// The last answers, by name.
pub(super) struct MemberFacts {
    peering: Peering,
    known: Mutex<HashMap<NodeName, Answer>>,
}

struct Answer {
    at: Instant,
    facts: Option<NodeFacts>,
}

impl MemberFacts {
    /// Reaches nodes as `peering` says.
    pub(super) fn new(peering: Peering) -> Self {
        Self { peering, known: Mutex::default() }
    }

    /// The facts of those `members` that are healthy and answer in time, or did lately. Who asks meanwhile waits for the
    /// same answers.
    pub(super) async fn of(&self, members: &[Member]) -> HashMap<NodeName, NodeFacts> {
        let mut known = self.known.lock().await;
        known.retain(|name, answer| {
            answer.at.elapsed() < FRESH && members.iter().any(|member| member.healthy && member.name == *name)
        });
        let missing: Vec<_> = members
            .iter()
            .filter(|member| member.healthy && !member.addr.is_empty() && !known.contains_key(&member.name))
            .map(|member| async {
                let asked =
                    tokio::time::timeout(ANSWER_MAX, rpc::describe(&member.addr, &self.peering)).await;
                let facts = asked.ok().and_then(Result::ok);
                (member.name.clone(), Answer { at: Instant::now(), facts })
            })
            .collect();
        known.extend(
            futures::stream::iter(missing).buffer_unordered(ASKED_AT_A_TIME).collect::<Vec<_>>().await,
        );
        let told = |(name, answer): (&NodeName, &Answer)| {
            let mut facts = answer.facts.clone()?;
            facts.uptime += answer.at.elapsed();
            Some((name.clone(), facts))
        };
        known.iter().filter_map(told).collect()
    }
}
