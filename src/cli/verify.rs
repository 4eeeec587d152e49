use std::time::{Duration, Instant};

use futures::future::join_all;

use super::output::{out, table};
use crate::http::{CheckDocument, Client, ClientError, DatabaseDocument, NodeDocument, escape_name};
use crate::types::DbName;

/// How often nodes at different transactions are asked again.
const ROUNDS_MAX: usize = 8;
/// Between two rounds.
const ROUND_EVERY: Duration = Duration::from_millis(300);
/// How long a repair is waited for.
const REPAIR_MAX: Duration = Duration::from_secs(120);

/// What one node says of one database.
struct Row {
    node: String,
    answer: Result<CheckDocument, String>,
    verdict: Verdict,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Its bytes are those of its position, and of the primary where that stands at the same.
    Sound,
    /// Its bytes are those of its position, which was the primary's a moment ago.
    Elsewhere,
    /// Its bytes are those of its position, behind which it stays although other nodes are further.
    Stuck,
    /// Its bytes are not those of its position.
    Damaged,
    /// Its position is not the history's.
    Differs,
    /// It does not answer.
    Silent,
}

impl Verdict {
    fn text(self) -> &'static str {
        match self {
            Verdict::Sound => "ok",
            Verdict::Elsewhere => "ok, at another transaction than the primary",
            Verdict::Stuck => "STAYS BEHIND other nodes: see its log, and who reads the database there",
            Verdict::Damaged => "DAMAGED: its pages are not what they were",
            Verdict::Differs => "DIFFERS from the primary at the same transaction",
            Verdict::Silent => "NOT CHECKED",
        }
    }

    fn wants_repair(self) -> bool {
        matches!(self, Verdict::Damaged | Verdict::Differs)
    }
}

/// `skein db verify`: exit code 1 where something is wrong, or a node does not answer.
pub(super) async fn run(
    client: &Client,
    db: Option<DbName>,
    repair: bool,
    json: bool,
) -> anyhow::Result<i32> {
    let primary = client.status().await?.primary.map(|primary| primary.name);
    let nodes: Vec<NodeDocument> = client.get("/v1/nodes").await?;
    let databases: Vec<String> = match db {
        Some(db) => vec![db.to_string()],
        None => {
            let all: Vec<DatabaseDocument> = client.get("/v1/databases").await?;
            all.into_iter().map(|db| db.name).collect()
        }
    };
    let mut lines = vec![["DATABASE", "NODE", "TXID", "CHECKSUM", "RESULT"].map(ToOwned::to_owned).to_vec()];
    let mut wrong = false;
    for db in &databases {
        let mut rows = compare(&nodes, primary.as_deref(), db).await;
        if repair {
            for row in rows.iter_mut().filter(|row| row.verdict.wants_repair()) {
                mend(&nodes, row, primary.as_deref(), db).await;
            }
        }
        wrong |= rows.iter().any(|row| !matches!(row.verdict, Verdict::Sound | Verdict::Elsewhere));
        lines.extend(rows.iter().map(|row| line(db, row)));
    }
    if json {
        let cells = |row: &Vec<String>| {
            let named = lines[0].iter().map(|head| head.to_lowercase()).zip(row.iter().cloned());
            named.collect::<std::collections::BTreeMap<_, _>>()
        };
        super::output::json(&lines[1..].iter().map(cells).collect::<Vec<_>>())?;
    } else {
        out(&table(&lines))?;
    }
    Ok(i32::from(wrong))
}

fn line(db: &str, row: &Row) -> Vec<String> {
    let (txid, checksum, why) = match &row.answer {
        Ok(check) => (check.txid.clone(), check.checksum.clone(), String::new()),
        Err(why) => ("-".to_owned(), "-".to_owned(), format!(": {why}")),
    };
    vec![db.to_owned(), row.node.clone(), txid, checksum, format!("{}{why}", row.verdict.text())]
}

/// Asks all nodes, those at other transactions again: writers need not stop for it.
async fn compare(nodes: &[NodeDocument], primary: Option<&str>, db: &str) -> Vec<Row> {
    let mut answers = join_all(nodes.iter().map(|node| check(node, db))).await;
    let mut still = vec![0; nodes.len()];
    for _ in 0..ROUNDS_MAX {
        let newest = answers.iter().flatten().map(|check| check.txid.clone()).max();
        let behind = |answer: &Result<CheckDocument, String>| {
            answer.as_ref().is_ok_and(|check| Some(&check.txid) < newest.as_ref())
        };
        if !answers.iter().any(behind) {
            break;
        }
        tokio::time::sleep(ROUND_EVERY).await;
        for ((node, answer), still) in nodes.iter().zip(&mut answers).zip(&mut still) {
            if behind(answer) {
                let before = std::mem::replace(answer, check(node, db).await);
                let same = |now: &CheckDocument| before.is_ok_and(|before| before.txid == now.txid);
                *still += usize::from(answer.as_ref().is_ok_and(same));
            }
        }
    }
    let leader = nodes.iter().zip(&answers).find(|(node, _)| Some(node.name.as_str()) == primary);
    let leader =
        leader.and_then(|(_, answer)| answer.as_ref().ok()).filter(|check| check.is_sound()).cloned();
    nodes
        .iter()
        .zip(answers)
        .zip(still)
        .map(|((node, answer), still)| Row {
            verdict: match judge(&answer, leader.as_ref()) {
                // It was behind in every round, and did not move once.
                Verdict::Sound | Verdict::Elsewhere if still == ROUNDS_MAX => Verdict::Stuck,
                verdict => verdict,
            },
            node: node.name.clone(),
            answer,
        })
        .collect()
}

fn judge(answer: &Result<CheckDocument, String>, leader: Option<&CheckDocument>) -> Verdict {
    match (answer, leader) {
        (Err(_), _) => Verdict::Silent,
        (Ok(check), _) if !check.is_sound() => Verdict::Damaged,
        (Ok(check), Some(leader)) if check.txid == leader.txid && check.checksum != leader.checksum => {
            Verdict::Differs
        }
        (Ok(check), Some(leader)) if check.txid == leader.txid => Verdict::Sound,
        (Ok(_), _) => Verdict::Elsewhere,
    }
}

async fn check(node: &NodeDocument, db: &str) -> Result<CheckDocument, String> {
    let client = client(node)?;
    let path = format!("/v1/databases/{}/check", escape_name(db));
    client.get(&path).await.map_err(|error: ClientError| error.to_string())
}

fn client(node: &NodeDocument) -> Result<Client, String> {
    let url = node.http.as_ref().ok_or_else(|| "it does not answer".to_owned())?;
    Client::new(url).map_err(|error| error.to_string())
}

/// Lets a node fetch what differs, and looks again.
async fn mend(nodes: &[NodeDocument], row: &mut Row, primary: Option<&str>, db: &str) {
    let Some(node) = nodes.iter().find(|node| node.name == row.node) else { return };
    let path = format!("/v1/databases/{}/repair", escape_name(db));
    let asked = match client(node) {
        Ok(client) => client.post(&path, &()).await.map_err(|error| error.to_string()),
        Err(why) => Err(why),
    };
    if let Err(why) = asked {
        row.answer = Err(format!("cannot be repaired: {why}"));
        return;
    }
    let deadline = Instant::now() + REPAIR_MAX;
    while Instant::now() < deadline {
        let answer = check(node, db).await;
        let leader = match nodes.iter().find(|node| Some(node.name.as_str()) == primary) {
            Some(leader) => check(leader, db).await.ok(),
            None => None,
        };
        let verdict = judge(&answer, leader.as_ref());
        if matches!(verdict, Verdict::Sound | Verdict::Elsewhere) {
            (row.answer, row.verdict) = (answer, verdict);
            return;
        }
        tokio::time::sleep(ROUND_EVERY).await;
    }
    row.answer = Err("not repaired in time; see its log".to_owned());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_judged_by_its_bytes_first_and_by_the_primary_second() {
        let check = |txid: &str, checksum: &str, computed: &str| CheckDocument {
            name: "a.db".into(),
            node: "n".into(),
            txid: txid.into(),
            checksum: checksum.into(),
            computed: computed.into(),
        };
        let leader = check("2", "c", "c");
        let verdict = |answer| judge(&answer, Some(&leader));
        assert!(verdict(Ok(check("2", "c", "c"))) == Verdict::Sound);
        assert!(verdict(Ok(check("1", "x", "x"))) == Verdict::Elsewhere);
        assert!(verdict(Ok(check("2", "d", "d"))) == Verdict::Differs);
        assert!(verdict(Ok(check("2", "c", "d"))) == Verdict::Damaged);
        assert!(verdict(Err("gone".into())) == Verdict::Silent);
        assert!(judge(&Ok(check("2", "d", "d")), None) == Verdict::Elsewhere);
    }
}
