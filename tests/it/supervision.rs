//! The program a node runs, and what systemd and the operator's hook hear.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::harness::{Node, PATIENCE, Settings, Voters, eventually, needs_skein, skein, skip};

fn lines(path: &Path) -> Vec<String> {
    std::fs::read_to_string(path).unwrap_or_default().lines().map(ToOwned::to_owned).collect()
}

/// A program that notes when it starts and that it was stopped.
fn noting(file: &Path) -> Vec<String> {
    let script =
        "trap 'echo stopped >>\"$0\"; exit 0' TERM; echo started >>\"$0\"; while :; do sleep 0.05; done";
    ["--", "sh", "-c", script, file.to_str().unwrap()].map(ToOwned::to_owned).into()
}

#[test]
fn a_program_only_on_the_primary_moves_with_it() {
    if !needs_skein() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let note = |node: usize| dir.path().join(format!("note{node}"));
    let heard = |node: usize| dir.path().join(format!("heard{node}"));
    let mut nodes: Vec<Node> = Vec::new();
    for number in 1..=3 {
        let mut settings = Settings::primary(&format!("n{number}"));
        settings.bootstrap = number == 1;
        settings.join = nodes.iter().map(|node| node.listen).collect();
        let hook = format!("echo $SKEIN_EVENT_ROLE $SKEIN_EVENT_PRIMARY >>{}", heard(number).display());
        settings.env =
            vec![("SKEIN_EXEC_ONLY_ON".into(), "primary".into()), ("SKEIN_EXEC_ON_ROLE_CHANGE".into(), hook)];
        settings.extra = noting(&note(number));
        let mut node = Node::new(dir.path(), settings);
        node.must_start();
        nodes.push(node);
    }
    let below = tempfile::tempdir().unwrap();
    let mut voters = Voters::of(nodes, below);
    voters.wait_voting(3);
    eventually("the primary's program started", || (lines(&note(1)) == ["started"]).then_some(()));
    assert!(lines(&note(2)).is_empty() && lines(&note(3)).is_empty(), "it runs where nobody may write");

    voters.nodes[0].must_client(&["handoff", "n2"]);
    eventually("it was stopped", || (lines(&note(1)) == ["started", "stopped"]).then_some(()));
    eventually("and started on the new primary", || (lines(&note(2)) == ["started"]).then_some(()));
    for (node, last) in [(1, "replica n2"), (2, "primary n2"), (3, "replica n2")] {
        eventually("the hook heard of it", || {
            lines(&heard(node)).last().is_some_and(|line| line == last).then_some(())
        });
    }
    assert!(voters.nodes[0].is_running());
    // The end of a node whose program waits is the end of a healthy node.
    assert_eq!(voters.nodes[2].terminate().and_then(|status| status.code()), Some(0));
    assert!(lines(&note(3)).is_empty());
}

#[test]
fn a_program_that_fails_is_started_again_and_one_that_ends_well_ends_the_node() {
    if !needs_skein() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let note = dir.path().join("note");
    let script = "echo run >>\"$0\"; test $(wc -l <\"$0\") -ge 3";
    let mut settings = Settings::primary("n1");
    settings.extra = ["--exec-restart", "on-failure", "--", "sh", "-c", script, note.to_str().unwrap()]
        .map(ToOwned::to_owned)
        .into();
    let mut node = Node::new(dir.path(), settings);
    node.must_start();
    let status = node.wait_for_end(PATIENCE).expect("it ends with its program");
    assert_eq!((status.code(), lines(&note).len()), (Some(0), 3), "{}", node.log());
}

#[test]
fn systemd_hears_ready_alive_and_stopping() {
    if !needs_skein() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut settings = Settings::primary("n1");
    let env = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    settings.env = vec![env("NOTIFY_SOCKET", path.to_str().unwrap()), env("WATCHDOG_USEC", "500000")];
    // Nothing that the node starts may speak in its name.
    settings.extra =
        ["--", "sh", "-c", "test -z \"$NOTIFY_SOCKET$WATCHDOG_USEC\" || exit 9; exec sleep 1000"]
            .map(ToOwned::to_owned)
            .into();
    let mut node = Node::new(dir.path(), settings);
    node.must_start();
    let mut buffer = [0; 4096];
    let mut hear = || {
        let length = socket.recv(&mut buffer).expect("systemd hears something");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    let first = hear();
    assert!(first.contains("READY=1") && first.contains("STATUS=mounted "), "{first}");
    for _ in 0..3 {
        assert!(hear().contains("WATCHDOG=1"));
    }
    assert_eq!(node.terminate().and_then(|status| status.code()), Some(128 + 15));
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let last = std::iter::repeat_with(hear).find(|said| !said.contains("WATCHDOG=1"));
    assert!(last.is_some_and(|said| said.contains("STOPPING=1")));
}

#[test]
fn the_unit_of_the_examples_is_one_systemd_understands() {
    let unit = include_str!("../../examples/skein.service");
    let own = skein().get_program().to_string_lossy().into_owned();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("skein.service");
    std::fs::write(&path, unit.replace("/usr/local/bin/skein", &own)).unwrap();
    let verify = ["verify", "--man=no", "--recursive-errors=no"];
    let Ok(output) = Command::new("systemd-analyze").args(verify).arg(&path).output() else {
        return skip("systemd-analyze is not installed");
    };
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !words.contains("skein.service"), "{words}");
}
