use std::io::IsTerminal;
use std::time::Duration;

use super::args::StatusArgs;
use super::output::{out, size, table};
use crate::http::{CopyDocument, DatabaseDocument, MemberDocument, StatusDocument};

/// `skein status`.
pub(super) async fn run(args: StatusArgs) -> anyhow::Result<i32> {
    let client = args.node.client()?;
    loop {
        let status = client.status().await;
        match (&status, args.watch) {
            (Err(_), false) | (Ok(_), _) => show(&status?, &args)?,
            // Whoever watches wants to see it come back.
            (Err(error), true) => out(&format!("{error}\n"))?,
        }
        if !args.watch {
            return Ok(0);
        }
        tokio::time::sleep(WATCH_EVERY).await;
    }
}

/// Between two looks of `--watch`.
const WATCH_EVERY: Duration = Duration::from_secs(1);
/// Clears a terminal, and goes to its upper left.
const CLEAR: &str = "\x1b[2J\x1b[H";

fn show(status: &StatusDocument, args: &StatusArgs) -> anyhow::Result<()> {
    if args.json {
        // One a line where several come.
        let text =
            if args.watch { serde_json::to_string(status)? } else { serde_json::to_string_pretty(status)? };
        return Ok(out(&format!("{text}\n"))?);
    }
    let clear = if args.watch && std::io::stdout().is_terminal() { CLEAR } else { "" };
    Ok(out(&format!("{clear}{}", render(status)))?)
}

fn render(status: &StatusDocument) -> String {
    let primary = match &status.primary {
        Some(primary) => format!("{} ({})", primary.name, primary.http),
        None => "unknown".to_owned(),
    };
    let mut own = vec![format!("version {}", status.version), format!("up {}", duration(status.uptime_s))];
    own.push(format!("passthrough {}", if status.passthrough { "on" } else { "off" }));
    own.extend(status.disk_free_bytes.map(|bytes| format!("{} free", size(bytes))));
    own.extend(status.proxy.as_ref().map(|url| format!("proxy {url}")));
    own.extend(status.write_leases.iter().map(|db| format!("write lease {db}")));
    own.extend(status.copying.as_ref().map(copying));
    format!(
        "{}\nnode {} ({})  primary {primary}  term {}  index {}\n{}\n\n{}\n{}",
        status.verdict,
        status.node,
        status.role,
        status.term,
        status.index,
        own.join("  "),
        members(&status.members),
        databases(&status.databases)
    )
}

fn copying(copying: &CopyDocument) -> String {
    let left = copying.seconds_left.map(|left| format!(", {} left", duration(left))).unwrap_or_default();
    let (bytes, total) = (size(copying.bytes), size(copying.total_bytes));
    format!("fetching {bytes} of {total}, {} a second{left}", size(copying.bytes_per_second))
}

/// Seconds for people: the two largest units.
fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// The members as a table.
pub(super) fn members(members: &[MemberDocument]) -> String {
    let mut rows = vec![heads(&[
        "MEMBER",
        "ROLE",
        "STANDING",
        "ADDRESS",
        "STATE",
        "LAG",
        "ENTRIES BEHIND",
        "VERSION",
        "UP",
        "DISK FREE",
        "PASSTHROUGH",
    ])];
    rows.extend(members.iter().map(|member| {
        vec![
            member.name.clone(),
            member.role.clone(),
            member.standing.clone(),
            if member.addr.is_empty() { "-".to_owned() } else { member.addr.clone() },
            state_of_member(member),
            member.lag_ms.map_or_else(unknown, |ms| format!("{ms} ms")),
            // What was last heard of a node that is gone says nothing of now.
            if member.healthy { member.lag_entries.to_string() } else { unknown() },
            member.version.clone().unwrap_or_else(unknown),
            member.uptime_s.map_or_else(unknown, duration),
            member.disk_free_bytes.map_or_else(unknown, size),
            member.passthrough.map_or_else(unknown, |on| if on { "yes" } else { "no" }.to_owned()),
        ]
    }));
    table(&rows)
}

fn unknown() -> String {
    "unknown".to_owned()
}

/// Whether a node was heard of, and how far its copy is.
fn state_of_member(member: &MemberDocument) -> String {
    match &member.copying {
        _ if !member.healthy => "unreachable".to_owned(),
        Some(copied) => {
            format!("healthy, fetching {} of {}", size(copied.bytes), size(copied.total_bytes))
        }
        None => "healthy".to_owned(),
    }
}

/// The databases as a table.
pub(super) fn databases(databases: &[DatabaseDocument]) -> String {
    let mut rows = vec![heads(&["DATABASE", "TXID", "CHECKSUM", "MODE", "SIZE", "OPEN", "STATE"])];
    rows.extend(databases.iter().map(|db| {
        vec![
            db.name.clone(),
            db.txid.clone(),
            db.checksum.clone(),
            db.mode.clone().unwrap_or_else(|| "-".to_owned()),
            size(db.size_bytes),
            if db.attached { "yes" } else { "no" }.to_owned(),
            state_of(db),
        ]
    }));
    table(&rows)
}

/// Whether a database can be used on the node, and why not.
fn state_of(db: &DatabaseDocument) -> String {
    if let Some(why) = &db.failure {
        return format!("NOT SERVED: {why}");
    }
    if db.held_by.is_empty() {
        return "served".to_owned();
    }
    let pids: Vec<_> = db.held_by.iter().map(ToString::to_string).collect();
    format!("HELD: open by pid {} through the mount of an earlier run", pids.join(", "))
}

fn heads(names: &[&str]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::CopiedDocument;

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
            version: None,
            uptime_s: None,
            disk_free_bytes: None,
            passthrough: None,
            copying: None,
        };
        let fetching = MemberDocument {
            name: "r2".into(),
            healthy: true,
            version: Some("1.2.3".into()),
            uptime_s: Some(7200),
            disk_free_bytes: Some(1 << 30),
            passthrough: Some(false),
            copying: Some(CopiedDocument { bytes: 1024, total_bytes: 4096 }),
            ..member.clone()
        };
        let db = DatabaseDocument {
            name: "a/b.db".into(),
            txid: "000000000000002a".into(),
            checksum: "8000000000000001".into(),
            mode: Some("wal".into()),
            size_bytes: 8192,
            attached: true,
            failure: Some("page 3 on disk is not what was written".into()),
            held_by: Vec::new(),
        };
        let held =
            DatabaseDocument { name: "held.db".into(), failure: None, held_by: vec![7, 12], ..db.clone() };
        let status = StatusDocument {
            node: "n1".into(),
            role: "voter".into(),
            primary: None,
            writable: false,
            verdict: "NO QUORUM: 1 of 3 voters".into(),
            no_quorum: Some("1 of 3 voters".into()),
            no_quorum_since: None,
            copying: None,
            version: "1.2.3".into(),
            uptime_s: 90_000,
            passthrough: true,
            mount: "/srv/app".into(),
            proxy: None,
            write_leases: vec!["a/b.db".into()],
            disk_free_bytes: Some(4096),
            term: 3,
            index: 9,
            databases: vec![db, held],
            members: vec![member, fetching],
        };
        let text = render(&status);
        assert!(text.starts_with("NO QUORUM: 1 of 3 voters\n"), "{text}");
        for part in [
            "primary unknown",
            "unreachable",
            "a/b.db",
            "000000000000002a",
            "8.0 KiB",
            "term 3",
            "up 1d1h",
            "NOT SERVED: page 3",
            "HELD: open by pid 7, 12",
            "healthy, fetching 1.0 KiB of 4.0 KiB",
            "2h0m",
            "1.0 GiB",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
