//! `skein doctor`: what it finds, and that it never judges a healthy node ill.

use serde_json::Value;

use crate::harness::{Node, Settings, free_address, needs_skein, skein};

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
    let (code, findings) = examine(&[&places[..], &ports].concat());
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
