//! `skein doctor` and `skein db verify`: what they find, and that they never judge a healthy node ill.

use serde_json::Value;

use crate::harness::certs::Certs;
use crate::harness::{Cluster, Node, Settings, free_address, is_plain, needs_skein, skein, sql};

fn examine(args: &[&str]) -> (Option<i32>, Vec<Value>) {
    let output = skein().args(["doctor", "--json"]).args(args).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let findings: Vec<Value> = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    (output.status.code(), findings)
}

fn find<'a>(findings: &'a [Value], check: &str) -> &'a Value {
    findings
        .iter()
        .find(|finding| finding["check"] == check)
        .unwrap_or_else(|| panic!("{check}: {findings:?}"))
}

#[test]
fn a_running_node_is_found_well_and_what_is_missing_has_a_remedy() {
    if !needs_skein() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::new(dir.path(), Settings::primary("n1"));
    let (mount, data) = (node.mount(), node.data());
    let places = ["--mount", mount.to_str().unwrap(), "--data", data.to_str().unwrap()];
    let (listen, http) = (node.listen.to_string(), node.http.to_string());
    let ports = ["--listen", listen.as_str(), "--http", http.as_str()];
    let (code, findings) = examine(&[&places[..], &ports, &["--bootstrap"]].concat());
    assert_eq!(code, Some(0), "{findings:?}");
    assert!(find(&findings, "grpc port")["seen"].as_str().unwrap().contains("free"));

    node.must_start();
    let (code, findings) = examine(&[&places[..], &ports].concat());
    assert_eq!(code, Some(0), "{findings:?}");
    for check in
        ["fuse", "rights", "disk", "data directory", "mount point", "http port", "grpc port", "cluster"]
    {
        assert_eq!(find(&findings, check)["health"], "ok", "{findings:?}");
    }

    let nobody = free_address().to_string();
    let (code, findings) =
        examine(&["--listen", &listen, "--http", &nobody, "--join", &nobody, "--data", "/proc/x"]);
    assert_eq!(code, Some(1));
    for check in ["grpc port", "other node", "data directory"] {
        let finding = find(&findings, check);
        assert_eq!(finding["health"], "failure", "{finding}");
        assert!(!finding["remedy"].as_str().unwrap().is_empty());
    }
    let text = skein().args(["doctor", "--join", &nobody]).output().unwrap();
    assert_eq!(text.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&text.stdout).contains("-> start it"));
}

#[test]
fn verify_finds_damage_on_one_node_and_repair_fetches_the_difference() {
    let Some(cluster) = Cluster::primary_and_replicas(1) else { return };
    if is_plain() {
        return;
    }
    for db in ["good.db", "bad.db"] {
        let connection = sql::open(&cluster.primary.path(db));
        connection
            .execute_batch(
                "PRAGMA journal_mode=DELETE; CREATE TABLE t(v); INSERT INTO t VALUES(randomblob(100000));",
            )
            .unwrap();
        cluster.converge(db);
    }
    let table = cluster.primary.must_client(&["db", "verify"]);
    assert_eq!(table.lines().filter(|line| line.ends_with("  ok")).count(), 4, "{table}");

    // A page of the replica's file changes behind everybody's back.
    let replica = &cluster.replicas[0];
    let file = std::fs::File::options().write(true).open(replica.data().join("dbs/bad.db/database")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"damage", 5 * 4096 + 100).unwrap();
    drop(file);
    let found = cluster.primary.client(&["db", "verify", "bad.db"]);
    let table = String::from_utf8(found.stdout).unwrap();
    assert_eq!(found.status.code(), Some(1), "{table}");
    assert!(table.lines().any(|line| line.contains("r1") && line.contains("DAMAGED")), "{table}");

    let table = cluster.primary.must_client(&["db", "verify", "--repair"]);
    assert!(!table.contains("DAMAGED"), "{table}");
    assert_eq!(replica.export("bad.db").unwrap(), cluster.primary.export("bad.db").unwrap());
    // The primary is what others are compared with.
    let refused =
        crate::harness::http::request(cluster.primary.http, "POST", "/v1/databases/bad.db/repair", &[]);
    let refused = refused.unwrap();
    assert!(refused.status == 400 && refused.text().contains("handoff"), "{}", refused.text());
}

#[test]
fn what_mount_would_refuse_is_a_failure() {
    let dir = tempfile::tempdir().unwrap();
    let (mount, data) = (dir.path().join("mnt"), dir.path().join("data"));
    let place =
        ["--mount".to_owned(), mount.display().to_string(), "--data".to_owned(), data.display().to_string()];
    let certs = Certs::init(&dir.path().join("certs"));
    let elsewhere = certs.issue("n1");
    let tls: Vec<&str> = elsewhere.iter().map(String::as_str).collect();
    let foreign = [&tls[..], &["--advertise", "192.0.2.7:1", "--insecure"]].concat();
    for (options, part) in [
        (&["--role", "primary"][..], "--role"),
        (&["--heartbeat", "200ms"], "--heartbeat"),
        (&["--commit-timeout", "100ms"], "--commit-timeout"),
        (&["--proxy-addr", "127.0.0.1:1"], "proxy.target"),
        (&["--traces-share", "2"], "share"),
        (&["--advertise", "0.0.0.0:1"], "--advertise"),
        (&["--advertise-http", "h:1"], "--advertise-http"),
        (&[], "give --bootstrap"),
        (&foreign, "192.0.2.7"),
        (&["--", "no-such-program"], "no-such-program"),
    ] {
        let founds = if options.is_empty() { None } else { Some("--bootstrap") };
        let output = skein().arg("doctor").args(&place).args(founds).args(options).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let failed = text.lines().any(|line| line.starts_with("FAILURE") && line.contains(part));
        assert!(failed && output.status.code() == Some(1), "{options:?}:\n{text}");
        assert!(!data.exists(), "nothing was changed");
    }
    let refused = skein().arg("mount").args(&place).args(&foreign).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("certs issue") && said.contains("--address 192.0.2.7"), "{said}");
}
