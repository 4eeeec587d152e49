//! What a running cluster exports is what is documented.

use skein::telemetry::metrics::{ALL, Kind};

use crate::harness::{Node, Voters, eventually, http, needs_skein, sql};

fn exported(node: &Node) -> String {
    let reply = http::request(node.http, "GET", "/metrics", &[]).unwrap();
    assert_eq!(reply.status, 200);
    reply.text()
}

/// The value of the first sample whose line begins so.
fn sample(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.rsplit(' ').next()?.parse().ok()
}

#[test]
fn every_metric_is_exported_by_a_running_node_and_nothing_else() {
    if !needs_skein() {
        return;
    }
    let Some(mut voters) = Voters::three() else { return };
    let replica = voters.add_replica();
    let primary = voters.primary();
    let db = sql::open(&voters.nodes[primary].path("app.db"));
    db.execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE t(v); INSERT INTO t VALUES(1);").unwrap();
    drop(voters.open(replica, "app.db"));
    voters.nodes[primary].must_client(&["wait", "app.db"]);
    voters.same_bytes("app.db");
    voters.nodes[primary].must_client(&["sql", "app.db", "SELECT * FROM t"]);

    let text = exported(&voters.nodes[primary]);
    // The proxy's are those of a node that has one.
    for metric in ALL.iter().filter(|metric| !metric.name.starts_with("skein_proxy_")) {
        let line = format!("# TYPE {} {}", metric.name, metric.kind.name());
        assert!(text.lines().any(|found| found == line), "{line:?} is missing in\n{text}");
    }
    for line in text.lines().filter(|line| line.starts_with("# TYPE ")) {
        assert!(
            ALL.iter().any(|metric| line.split(' ').nth(2) == Some(metric.name)),
            "{line} is not documented"
        );
    }
    for name in ["skein_commit", "skein_capture", "skein_quorum", "skein_log_sync"] {
        let count = sample(&text, &format!("{name}_duration_seconds_count"));
        assert!(count >= Some(1.0), "{name}: {count:?}");
    }
    assert_eq!(sample(&text, "skein_is_primary"), Some(1.0));
    assert!(sample(&text, "skein_db_txid{db=\"app.db\"}") >= Some(2.0), "{text}");
    let text = exported(&voters.nodes[replica]);
    for name in ["skein_apply_duration_seconds_count", "skein_apply_lag_seconds_count"] {
        assert!(sample(&text, name) >= Some(1.0), "{name}");
    }
    let handoff = voters
        .nodes
        .iter()
        .position(|node| node.settings.role == "voter" && node.http != voters.nodes[primary].http);
    let to = voters.nodes[handoff.unwrap()].settings.name.clone();
    voters.nodes[primary].must_client(&["handoff", &to]);
    let text = exported(&voters.nodes[primary]);
    assert_eq!(sample(&text, "skein_handoff_duration_seconds_count"), Some(1.0));
    eventually("no longer primary", || {
        (sample(&exported(&voters.nodes[primary]), "skein_is_primary") == Some(0.0)).then_some(())
    });
    assert!(ALL.iter().any(|metric| metric.kind == Kind::Histogram));
}
