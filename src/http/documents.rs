use std::collections::HashMap;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::{Details, Overview};
use crate::store::{CopyProgress, DbStatus, Member, NodeFacts, PrimaryInfo, Standing};
use crate::types::{NodeName, Timestamp};

/// `GET /v1/status`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct StatusDocument {
    /// Name of the node that answers.
    pub node: String,
    /// In a sentence how the cluster is: `ok`, `degraded: ...`, `NO QUORUM since ...: ...` or `not ready: ...`.
    #[serde(default)]
    pub verdict: String,
    /// `voter` or `replica`.
    pub role: String,
    /// The primary; `null` where unknown.
    pub primary: Option<PrimaryDocument>,
    /// Whether applications of the node that answers may write now.
    #[serde(default)]
    pub writable: bool,
    /// Why nothing can be written; left out while there is a quorum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_quorum: Option<String>,
    /// Since when, as RFC 3339; left out while there is a quorum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_quorum_since: Option<String>,
    /// What is fetched from other nodes at the moment; left out while nothing is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copying: Option<CopyDocument>,
    /// Version of the program of the node that answers.
    #[serde(default)]
    pub version: String,
    /// How long it has run, in seconds.
    #[serde(default)]
    pub uptime_s: u64,
    /// Whether the kernel reads and writes its WAL databases itself.
    #[serde(default)]
    pub passthrough: bool,
    /// Its mount point.
    #[serde(default)]
    pub mount: String,
    /// URL of the proxy in front of its application; `null` where there is none.
    #[serde(default)]
    pub proxy: Option<String>,
    /// The databases whose write lease applications of the node that answers hold; left out where there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub write_leases: Vec<String>,
    /// Space left for its data directory, in bytes; `null` where unknown.
    #[serde(default)]
    pub disk_free_bytes: Option<u64>,
    /// The Raft term; 0 where unknown.
    pub term: u64,
    /// Last log entry applied.
    pub index: u64,
    /// The databases by name.
    pub databases: Vec<DatabaseDocument>,
    /// The nodes of the cluster this node knows.
    pub members: Vec<MemberDocument>,
}

/// How far a first copy, or one of what differs, is.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct CopyDocument {
    /// Bytes that are in place.
    pub bytes: u64,
    /// Of so many.
    pub total_bytes: u64,
    /// Bytes a second.
    pub bytes_per_second: u64,
    /// Seconds left at that rate; `null` before anything is there.
    pub seconds_left: Option<u64>,
}

/// How far another node's copy is, as it tells.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct CopiedDocument {
    /// Bytes that are in place.
    pub bytes: u64,
    /// Of so many.
    pub total_bytes: u64,
}

/// Who is primary.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct PrimaryDocument {
    /// Its name.
    pub name: String,
    /// The URL of its API.
    pub http: String,
}

/// One database.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct DatabaseDocument {
    /// Its name.
    pub name: String,
    /// Its last transaction, 16 hex digits; zeros before the first.
    pub txid: String,
    /// Checksum of its pages, 16 hex digits.
    pub checksum: String,
    /// `wal` or `rollback`; `null` while it is empty.
    pub mode: Option<String>,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Whether applications of this node have it open.
    pub attached: bool,
    /// Why it is not served, where the copy here is wrong; left out while it is served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// Processes of this node that have it open through the mount of an earlier run: it cannot be opened on the mount
    /// before they close it. Left out where there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub held_by: Vec<i32>,
}

/// One node.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct MemberDocument {
    /// Its name.
    pub name: String,
    /// `voter` or `replica`.
    pub role: String,
    /// HOST:PORT of its gRPC.
    pub addr: String,
    /// Whether it was heard of lately.
    pub healthy: bool,
    /// For how long it has been behind, in milliseconds; `null` where unknown.
    pub lag_ms: Option<u64>,
    /// Log entries it still lacks.
    pub lag_entries: u64,
    /// `votes`; `joining`: gets the log and votes when it is close behind; `standby`: gets the log and does not vote;
    /// `follows`: a replica.
    #[serde(default)]
    pub standing: String,
    /// Version of its program; this and what follows is `null` where the node does not tell in time.
    #[serde(default)]
    pub version: Option<String>,
    /// Seconds since it was started.
    #[serde(default)]
    pub uptime_s: Option<u64>,
    /// Bytes that are free below its data directory.
    #[serde(default)]
    pub disk_free_bytes: Option<u64>,
    /// Whether its kernel reads and writes WAL databases itself.
    #[serde(default)]
    pub passthrough: Option<bool>,
    /// Bytes that are in place and bytes of all, while it fetches databases.
    #[serde(default)]
    pub copying: Option<CopiedDocument>,
}

impl StatusDocument {
    /// The document of a node.
    pub fn new(
        overview: &Overview,
        details: Details,
        databases: Vec<DbStatus>,
        mut members: Vec<Member>,
        facts: &HashMap<NodeName, NodeFacts>,
    ) -> Self {
        sort(&mut members);
        Self {
            node: overview.name.to_string(),
            verdict: verdict(overview, &members),
            role: overview.role.to_string(),
            primary: overview.primary.clone().map(PrimaryDocument::from),
            writable: overview.is_primary && overview.ready.is_ok(),
            no_quorum: overview.no_quorum.clone(),
            no_quorum_since: overview.no_quorum_since.map(time_of),
            copying: overview.copying.map(CopyDocument::from),
            version: details.version,
            uptime_s: details.uptime.as_secs(),
            passthrough: details.passthrough,
            mount: details.mount,
            proxy: (!details.proxy.is_empty()).then_some(details.proxy),
            write_leases: details.write_leases.iter().map(ToString::to_string).collect(),
            disk_free_bytes: details.disk_free_bytes,
            term: overview.term,
            index: overview.index.get(),
            databases: databases.into_iter().map(DatabaseDocument::from).collect(),
            members: member_documents(members, facts),
        }
    }
}

fn time_of(time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_ms(i64::try_from(since.as_millis()).unwrap_or(i64::MAX)).to_string()
}

/// How the cluster is, as far as this node knows, in one sentence.
pub(super) fn verdict(overview: &Overview, members: &[Member]) -> String {
    if let Some(why) = &overview.no_quorum {
        let since = overview.no_quorum_since.map(|since| format!(" since {}", time_of(since)));
        return format!("NO QUORUM{}: {why}", since.unwrap_or_default());
    }
    if let Err(why) = &overview.ready {
        return format!("not ready: {why}");
    }
    // Only the primary, and whom it has told, know how others are.
    let known = members.iter().any(|member| member.healthy && member.name != overview.name);
    let votes = |member: &&Member| member.standing == Standing::Votes;
    let voters = members.iter().filter(votes).count();
    let gone: Vec<&str> =
        members.iter().filter(|member| !member.healthy).map(|member| member.name.as_str()).collect();
    if gone.is_empty() || (!known && voters > 1) {
        return "ok".to_owned();
    }
    let down = members.iter().filter(votes).filter(|member| !member.healthy).count();
    let of = if down > 0 { format!("{down} of {voters} voters down, ") } else { String::new() };
    format!("degraded: {of}no word of {}", gone.join(", "))
}

/// Voters, then others, each by name as people count: n2 before n10.
pub(super) fn sort(members: &mut [Member]) {
    let part = |member: &Member| match member.standing {
        Standing::Votes => 0,
        Standing::Joining => 1,
        Standing::Standby => 2,
        Standing::Follows => 3,
    };
    members.sort_by_cached_key(|member| (part(member), natural(member.name.as_str())));
}

/// A key that sorts runs of digits by their number.
fn natural(name: &str) -> Vec<(String, u64)> {
    let mut parts = vec![(String::new(), 0u64)];
    let mut in_digits = false;
    for c in name.chars() {
        match c.to_digit(10) {
            Some(digit) => {
                let last = parts.last_mut().expect("there is always one");
                last.1 = last.1.saturating_mul(10).saturating_add(u64::from(digit));
            }
            None if in_digits => parts.push((c.to_string(), 0)),
            None => parts.last_mut().expect("there is always one").0.push(c),
        }
        in_digits = c.is_ascii_digit();
    }
    parts
}

impl From<CopyProgress> for CopyDocument {
    fn from(progress: CopyProgress) -> Self {
        Self {
            bytes: progress.bytes,
            total_bytes: progress.total_bytes,
            bytes_per_second: progress.rate() as u64,
            seconds_left: progress.left().map(|left| left.as_secs()),
        }
    }
}

impl From<PrimaryInfo> for PrimaryDocument {
    fn from(primary: PrimaryInfo) -> Self {
        Self { name: primary.name, http: primary.http }
    }
}

impl From<DbStatus> for DatabaseDocument {
    fn from(db: DbStatus) -> Self {
        Self {
            name: db.name.to_string(),
            txid: format!("{:016x}", db.pos.txid_or_zero()),
            checksum: db.pos.checksum.to_string(),
            mode: db.mode.map(|mode| mode.to_string()),
            size_bytes: db.size_bytes,
            attached: db.attached,
            failure: db.failure,
            held_by: db.held_by,
        }
    }
}

/// The documents of `members`, with what they say of themselves.
pub(super) fn member_documents(
    members: Vec<Member>,
    facts: &HashMap<NodeName, NodeFacts>,
) -> Vec<MemberDocument> {
    members.into_iter().map(|member| MemberDocument::new(facts.get(&member.name), member)).collect()
}

impl MemberDocument {
    /// The document of a node, with what it says of itself where that is known.
    pub fn new(facts: Option<&NodeFacts>, member: Member) -> Self {
        Self {
            version: facts.map(|facts| facts.version.clone()),
            uptime_s: facts.map(|facts| facts.uptime.as_secs()),
            disk_free_bytes: facts.and_then(|facts| facts.disk_free_bytes),
            passthrough: facts.map(|facts| facts.passthrough),
            copying: facts
                .and_then(|facts| facts.copying)
                .map(|(bytes, total_bytes)| CopiedDocument { bytes, total_bytes }),
            name: member.name.to_string(),
            role: member.role.to_string(),
            addr: member.addr,
            healthy: member.healthy,
            lag_ms: member.lag.map(|lag| u64::try_from(lag.as_millis()).unwrap_or(u64::MAX)),
            lag_entries: member.lag_entries,
            standing: member.standing.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{LogIndex, Role};

    fn member(name: &str, healthy: bool, standing: Standing) -> Member {
        let (name, addr) = (name.parse().unwrap(), String::new());
        Member { name, role: Role::Voter, addr, healthy, lag: None, lag_entries: 0, standing }
    }

    fn overview() -> Overview {
        Overview {
            name: "n1".parse().unwrap(),
            role: Role::Voter,
            primary: None,
            is_primary: true,
            term: 1,
            index: LogIndex::new(1),
            durable_index: LogIndex::new(1),
            no_quorum: None,
            no_quorum_since: None,
            copying: None,
            ready: Ok(()),
        }
    }

    #[test]
    fn the_worst_comes_first() {
        let voters = |healthy: [bool; 3]| {
            let names = ["n1", "n2", "n3"].into_iter().zip(healthy);
            names.map(|(name, healthy)| member(name, healthy, Standing::Votes)).collect::<Vec<_>>()
        };
        assert_eq!(verdict(&overview(), &voters([true; 3])), "ok");
        let one = verdict(&overview(), &voters([true, true, false]));
        assert_eq!(one, "degraded: 1 of 3 voters down, no word of n3");
        let mut all = voters([true; 3]);
        all.push(member("r1", false, Standing::Follows));
        assert_eq!(verdict(&overview(), &all), "degraded: no word of r1");
        let starting = Overview { ready: Err("this node is starting".into()), ..overview() };
        assert_eq!(verdict(&starting, &all), "not ready: this node is starting");
        let since = Some(SystemTime::UNIX_EPOCH);
        let lost = Overview { no_quorum: Some("1 of 3 voters".into()), no_quorum_since: since, ..starting };
        assert_eq!(verdict(&lost, &all), "NO QUORUM since 1970-01-01T00:00:00.000Z: 1 of 3 voters");
    }

    #[test]
    fn nodes_are_listed_voters_first_and_as_people_count() {
        let names = ["r1", "n10", "n2", "n1", "a"];
        let mut members: Vec<_> = names
            .map(|name| member(name, true, if name == "r1" { Standing::Follows } else { Standing::Votes }))
            .into();
        sort(&mut members);
        let sorted: Vec<_> = members.iter().map(|member| member.name.as_str()).collect();
        assert_eq!(sorted, ["a", "n1", "n2", "n10", "r1"]);
    }
}
