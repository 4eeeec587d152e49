use super::args::StatusArgs;
use super::output::{out, size, table};
use crate::http::{DatabaseDocument, MemberDocument, StatusDocument};

/// `skein status`.
pub(super) async fn run(args: StatusArgs) -> anyhow::Result<i32> {
    let status = args.node.client()?.status().await?;
    if args.json {
        out(&format!("{}\n", serde_json::to_string_pretty(&status)?))?;
    } else {
        out(&render(&status))?;
    }
    Ok(0)
}

fn render(status: &StatusDocument) -> String {
    let primary = match &status.primary {
        Some(primary) => format!("{} ({})", primary.name, primary.http),
        None => "unknown".to_owned(),
    };
    let verdict = status.no_quorum.as_ref().map_or_else(String::new, |why| format!("NO QUORUM: {why}\n"));
    format!(
        "{verdict}node {} ({})  primary {primary}  term {}  index {}\n\n{}\n{}",
        status.node,
        status.role,
        status.term,
        status.index,
        members(&status.members),
        databases(&status.databases)
    )
}

/// The members as a table.
pub(super) fn members(members: &[MemberDocument]) -> String {
    let mut rows = vec![heads(&["MEMBER", "ROLE", "STANDING", "ADDRESS", "STATE", "LAG", "ENTRIES BEHIND"])];
    rows.extend(members.iter().map(|member| {
        vec![
            member.name.clone(),
            member.role.clone(),
            member.standing.clone(),
            if member.addr.is_empty() { "-".to_owned() } else { member.addr.clone() },
            if member.healthy { "healthy" } else { "unreachable" }.to_owned(),
            member.lag_ms.map_or_else(|| "unknown".to_owned(), |ms| format!("{ms} ms")),
            member.lag_entries.to_string(),
        ]
    }));
    table(&rows)
}

/// The databases as a table.
pub(super) fn databases(databases: &[DatabaseDocument]) -> String {
    let mut rows = vec![heads(&["DATABASE", "TXID", "CHECKSUM", "MODE", "SIZE", "OPEN"])];
    rows.extend(databases.iter().map(|db| {
        vec![
            db.name.clone(),
            db.txid.clone(),
            db.checksum.clone(),
            db.mode.clone().unwrap_or_else(|| "-".to_owned()),
            size(db.size_bytes),
            if db.attached { "yes" } else { "no" }.to_owned(),
        ]
    }));
    table(&rows)
}

fn heads(names: &[&str]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_names_primary_members_and_positions() {
        let member = MemberDocument {
            name: "r1".into(),
            role: "replica".into(),
            addr: String::new(),
            healthy: false,
            lag_ms: None,
            lag_entries: 7,
            standing: "follows".into(),
        };
        let db = DatabaseDocument {
            name: "a/b.db".into(),
            txid: "000000000000002a".into(),
            checksum: "8000000000000001".into(),
            mode: Some("wal".into()),
            size_bytes: 8192,
            attached: true,
        };
        let status = StatusDocument {
            node: "n1".into(),
            role: "voter".into(),
            primary: None,
            no_quorum: Some("1 of 3 voters".into()),
            term: 3,
            index: 9,
            databases: vec![db],
            members: vec![member],
        };
        let text = render(&status);
        assert!(text.starts_with("NO QUORUM: 1 of 3 voters\n"), "{text}");
        for part in ["primary unknown", "unreachable", "a/b.db", "000000000000002a", "8.0 KiB", "term 3"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
