//! How nodes that were started alike found one cluster together (`--bootstrap-expect`).
//!
//! Each asks the others of its `--join` list who they are. Once as many are there as are expected, the one with the lowest
//! number asks all others for their promise, and founds the cluster with them as its voters when it has every one. A promise
//! is durable and given once, so two founders never both have what they need, however starts, restarts and emptied data
//! directories overlap. Whoever finds a node that has a cluster joins that one instead.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{IdentityFile, NodeError, NodeIdentity, draw_cluster_id};
use crate::rpc::{self, Elsewhere, Meeting, Met};
use crate::security::Peering;
use crate::store::Candidate;
use crate::stream::StreamError;
use crate::types::NodeId;

/// Pause between attempts.
const PAUSE: Duration = Duration::from_millis(300);
/// How long a node has to say who it is.
const ANSWER_MAX: Duration = Duration::from_secs(3);

/// What became of the meeting.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Founded {
    /// This node founds the cluster, with these as its other voters.
    ByThis(Vec<Candidate>),
    /// There is a cluster, or another node founds it.
    ByAnother,
}

/// A node that waits for others to found a cluster with.
pub(super) struct Founding {
    pub(super) own: Candidate,
    /// How many voters the cluster begins with.
    pub(super) expect: u32,
    /// HOST:PORT of the others; this node's own may be among them.
    pub(super) addrs: Vec<String>,
    pub(super) identity: Arc<IdentityFile>,
    pub(super) peering: Peering,
}

/// What to do after all were asked once.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Somebody has a cluster.
    Join,
    /// Not all are there, or another one is to found it; why.
    Wait(String),
    /// Ask these for their promise.
    Ask(BTreeMap<String, Candidate>),
}

/// What was heard from an address.
type Heard = BTreeMap<String, Result<Met, String>>;

impl Founding {
    /// Meets the others until a cluster is there, or this node is to found it; then it is noted durably that it does.
    /// Meanwhile others are answered on `listener`.
    ///
    /// # Errors
    /// Where the identity cannot be stored.
    pub(super) async fn meet(self, listener: &TcpListener) -> Result<Founded, NodeError> {
        let failed = |error: std::io::Error| NodeError::System(format!("listening for other nodes: {error}"));
        // The same socket: the first listener accepts nothing before this one has ended.
        let own = std::os::fd::AsFd::as_fd(listener).try_clone_to_owned().map_err(failed)?;
        let own = TcpListener::from_std(own.into()).map_err(failed)?;
        let stop = CancellationToken::new();
        let served = rpc::serve(
            own,
            rpc::founding_routes(self.answer()),
            Elsewhere::default(),
            self.peering.clone(),
            stop.clone(),
        );
        let served = tokio::spawn(served);
        let met = self.ask_until_founded().await;
        stop.cancel();
        // What it was still answering is asked again.
        let _ended = served.await;
        met
    }

    async fn ask_until_founded(&self) -> Result<Founded, NodeError> {
        let mut said = None;
        loop {
            let heard = self.ask(&self.addrs, false).await;
            let promised = self.identity.get().promised;
            let why = match next_step(&self.own, promised, self.expect, &heard) {
                Step::Join => return Ok(Founded::ByAnother),
                Step::Wait(why) => why,
                Step::Ask(others) => match self.collect_promises(others).await? {
                    Ok(others) => return self.found(others),
                    Err(why) => why,
                },
            };
            if said.as_ref() != Some(&why) {
                tracing::info!("waiting to found the cluster: {why}");
                said = Some(why);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Asks all `addrs` at once.
    async fn ask(&self, addrs: &[String], founds: bool) -> Heard {
        let meeting = Meeting { node: self.own.clone(), expect: self.expect, founds };
        let asked = addrs.iter().map(|addr| async {
            let answer = tokio::time::timeout(ANSWER_MAX, rpc::meet(addr, &self.peering, &meeting)).await;
            let late = |_| Err(StreamError::Unavailable("did not answer in time".into()));
            (addr.clone(), answer.unwrap_or_else(late).map_err(|error| error.to_string()))
        });
        futures::future::join_all(asked).await.into_iter().collect()
    }

    /// Has everybody's promise, or says whose is missing.
    async fn collect_promises(
        &self,
        others: BTreeMap<String, Candidate>,
    ) -> Result<Result<Vec<Candidate>, String>, NodeError> {
        let own = self.own.node;
        // Its own comes first: from now on it joins no other founder.
        self.identity.update(|identity| identity.promised = Some(own))?;
        let addrs: Vec<String> = others.keys().cloned().collect();
        for (addr, answer) in self.ask(&addrs, true).await {
            match answer {
                Ok(Met::Waiting { promised_to: Some(to), .. }) if to == own => {}
                Ok(Met::Waiting { node, promised_to, .. }) => {
                    return Ok(Err(taken(&node, promised_to)));
                }
                Ok(Met::HasCluster) => return Ok(Err(format!("{addr} has a cluster"))),
                Err(error) => return Ok(Err(format!("{addr}: {error}"))),
            }
        }
        Ok(Ok(others.into_values().collect()))
    }

    fn found(&self, others: Vec<Candidate>) -> Result<Founded, NodeError> {
        let cluster = draw_cluster_id()?;
        self.identity.update(|identity| {
            identity.cluster.get_or_insert(cluster);
            identity.founding = true;
        })?;
        let names: Vec<_> = others.iter().map(|other| other.name.to_string()).collect();
        tracing::info!("founding the cluster with {}", names.join(" and "));
        Ok(Founded::ByThis(others))
    }

    /// What others are answered: who this node is, and its promise where it is asked for and has none given.
    fn answer(&self) -> rpc::Answer {
        let (own, expect, identity) = (self.own.clone(), self.expect, self.identity.clone());
        Arc::new(move |meeting: Meeting| {
            if meeting.founds && meeting.expect == expect {
                let io = |error: NodeError| StreamError::Unavailable(error.to_string());
                let promise = |identity: &mut NodeIdentity| {
                    identity.promised.get_or_insert(meeting.node.node);
                };
                identity.update(promise).map_err(io)?;
            }
            Ok(Met::Waiting { node: own.clone(), expect, promised_to: identity.get().promised })
        })
    }
}

fn taken(node: &Candidate, promised_to: Option<NodeId>) -> String {
    let to = promised_to.map_or_else(|| "nobody".to_owned(), |to| format!("node {to}"));
    format!(
        "{} has promised to join the cluster of {to}; where that node is gone for ever, empty the data directories of all nodes that wait",
        node.name
    )
}

fn next_step(own: &Candidate, promised: Option<NodeId>, expect: u32, heard: &Heard) -> Step {
    let mut there = BTreeMap::from([(own.node, (None, own))]);
    let mut missing = Vec::new();
    for (addr, answer) in heard {
        match answer {
            Ok(Met::HasCluster) => return Step::Join,
            Ok(Met::Waiting { expect: theirs, node, .. }) if *theirs != expect => {
                missing.push(format!("{} has --bootstrap-expect {theirs}, not {expect}", node.name));
            }
            // Its own address may be in the list.
            Ok(Met::Waiting { node, .. }) if node.node == own.node => {}
            Ok(Met::Waiting { node, .. }) => drop(there.insert(node.node, (Some(addr), node))),
            Err(error) => missing.push(format!("{addr}: {error}")),
        }
    }
    let names: BTreeSet<_> = there.values().map(|(_, node)| node.name.as_str()).collect();
    let list = names.iter().copied().collect::<Vec<_>>().join(", ");
    if names.len() != there.len() {
        return Step::Wait(format!(
            "two nodes have the same name (there are {list}): give each its own --name"
        ));
    }
    if there.len() != expect as usize {
        missing.insert(0, format!("{} of {expect} voters are there ({list})", there.len()));
        return Step::Wait(missing.join("; "));
    }
    let founder = there.values().next().map_or(own, |(_, node)| *node);
    if founder.node != own.node {
        return Step::Wait(format!("all {expect} are there ({list}), and {} founds it", founder.name));
    }
    if let Some(other) = promised.filter(|to| *to != own.node) {
        return Step::Wait(taken(own, Some(other)));
    }
    let others = there.into_values();
    Step::Ask(others.filter_map(|(addr, node)| Some((addr?.clone(), node.clone()))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: u64) -> Candidate {
        let addr = format!("h{number}:1");
        let name = format!("n{number}").parse().unwrap();
        Candidate { node: NodeId::new(number), name, addr, http: String::new(), returning: false }
    }

    fn heard(numbers: &[u64]) -> Heard {
        let met = |number: &u64| Met::Waiting { node: node(*number), expect: 3, promised_to: None };
        numbers.iter().map(|number| (format!("h{number}:1"), Ok(met(number)))).collect()
    }

    fn waits(step: Step, part: &str) {
        assert!(matches!(&step, Step::Wait(why) if why.contains(part)), "{step:?}");
    }

    #[test]
    fn the_lowest_number_founds_once_all_are_there_and_the_others_wait_for_it() {
        let asked = |others: [u64; 2]| {
            Step::Ask(others.map(|number| (format!("h{number}:1"), node(number))).into_iter().collect())
        };
        assert_eq!(next_step(&node(1), None, 3, &heard(&[1, 2, 3])), asked([2, 3]));
        assert_eq!(next_step(&node(1), None, 3, &heard(&[2, 3])), asked([2, 3]), "without its own address");
        waits(next_step(&node(2), None, 3, &heard(&[1, 3])), "n1 founds it");
        waits(next_step(&node(1), None, 3, &heard(&[2])), "2 of 3 voters are there (n1, n2)");
        waits(next_step(&node(1), None, 3, &heard(&[2, 3, 4])), "4 of 3 voters");
    }

    #[test]
    fn who_has_promised_another_founder_founds_nothing() {
        waits(next_step(&node(1), Some(NodeId::new(9)), 3, &heard(&[2, 3])), "promised");
        let again = next_step(&node(1), Some(NodeId::new(1)), 3, &heard(&[2, 3]));
        assert!(matches!(again, Step::Ask(_)), "{again:?}");
    }

    #[test]
    fn a_cluster_that_is_there_is_joined_and_contradictions_are_said() {
        let mut answers = heard(&[2, 3]);
        answers.insert("h4:1".into(), Ok(Met::HasCluster));
        assert_eq!(next_step(&node(1), None, 3, &answers), Step::Join);
        let mut answers = heard(&[2]);
        answers.insert("h3:1".into(), Ok(Met::Waiting { node: node(3), expect: 5, promised_to: None }));
        waits(next_step(&node(1), None, 3, &answers), "--bootstrap-expect 5");
        let twin = Candidate { name: "n2".parse().unwrap(), ..node(3) };
        answers.insert("h3:1".into(), Ok(Met::Waiting { node: twin, expect: 3, promised_to: None }));
        waits(next_step(&node(1), None, 3, &answers), "same name");
    }
}
