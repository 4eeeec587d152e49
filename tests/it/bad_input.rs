//! Wrong flags, foreign directories and garbage from the network: a clear error, never a panic.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Output;
use std::time::Duration;

use crate::harness::sql;
use crate::harness::{Cluster, Node, Settings, eventually, http, is_plain, needs_skein, skein};

/// One line on stderr that names the subject, this exit code, and no trace of a panic.
fn assert_refused(output: &Output, code: i32, subject: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.contains(subject), "{subject:?} is not named: {said}");
    assert!(!said.contains("panicked") && !said.contains("backtrace"), "{said}");
    assert!(output.stdout.is_empty(), "an error on stdout: {}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn wrong_usage_is_answered_with_code_2_and_the_wrong_word() {
    if is_plain() {
        return;
    }
    for (arguments, subject) in [
        (&["mount", "--no-such-option"][..], "--no-such-option"),
        (&["mount", "--mount", "m", "--data", "d", "--role", "king"], "king"),
        (&["mount", "--mount", "m", "--data", "d", "--http", "nowhere"], "nowhere"),
        (&["no-such-command"], "no-such-command"),
        (&["wait", "app.db", "--timeout", "soon"], "soon"),
        (&["db", "export"], "DB"),
    ] {
        assert_refused(&skein().args(arguments).output().unwrap(), 2, subject);
    }
}

#[test]
fn a_client_without_a_node_says_where_it_looked() {
    if is_plain() {
        return;
    }
    let output = skein().args(["status"]).env("SKEIN_URL", "http://127.0.0.1:9").output().unwrap();
    assert_refused(&output, 1, "127.0.0.1:9");
    assert_eq!(String::from_utf8_lossy(&output.stderr).trim_end().lines().count(), 1, "an error is one line");
}

#[test]
fn a_configuration_file_with_an_unknown_key_is_refused_by_name() {
    if !needs_skein() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("skein.toml");
    fs::write(&config, "nmae = \"typo\"\n").unwrap();
    let output = skein().args(["mount", "--config", config.to_str().unwrap()]).output().unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("nmae") && !said.contains("panicked"), "{said}");
}

#[test]
fn a_foreign_data_directory_is_left_alone() {
    if !needs_skein() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::new(dir.path(), Settings::primary("n1"));
    fs::write(node.data().join("precious.txt"), "not ours").unwrap();
    let said = node.start().expect_err("a foreign directory was taken");
    assert!(said.contains("data"), "{said}");
    assert_eq!(fs::read_to_string(node.data().join("precious.txt")).unwrap(), "not ours");
    assert_eq!(
        fs::read_dir(node.data()).unwrap().count(),
        1,
        "something was written into a foreign directory"
    );
}

#[test]
fn a_newer_format_version_is_refused_and_a_second_bootstrap_resumes_the_first_cluster() {
    if !needs_skein() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::new(dir.path(), Settings::primary("n1"));
    node.must_start();
    sql::run(&sql::create(&node.path("app.db"), "delete", 4096), "CREATE TABLE t(v)");
    node.terminate();
    let identity = node.data().join("node.toml");
    let good = fs::read_to_string(&identity).unwrap();
    let newer: Vec<_> = good
        .lines()
        .map(|line| {
            if line.contains("version") {
                line.replace(|c: char| c.is_ascii_digit(), "9")
            } else {
                line.to_owned()
            }
        })
        .collect();
    assert_ne!(newer.join("\n"), good.trim_end(), "node.toml has no version: {good}");
    fs::write(&identity, newer.join("\n")).unwrap();
    let said = node.start().expect_err("a newer format was opened");
    assert!(said.contains("version"), "{said}");
    fs::write(&identity, "cluster = [broken").unwrap();
    let said = node.start().expect_err("a damaged node.toml was opened");
    assert!(said.contains("node.toml"), "{said}");
    fs::write(&identity, &good).unwrap();
    let cluster = |text: &str| text.lines().find(|line| line.starts_with("cluster")).map(ToOwned::to_owned);
    node.settings.bootstrap = true;
    node.must_start();
    assert_eq!(cluster(&fs::read_to_string(&identity).unwrap()), cluster(&good));
    assert_eq!(sql::number(&sql::open(&node.path("app.db")), "SELECT count(*) FROM t"), 0);
}

#[test]
fn two_nodes_never_share_one_data_directory() {
    if !needs_skein() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut first = Node::new(dir.path(), Settings::primary("n1"));
    first.must_start();
    let mut settings = Settings::primary("n2");
    settings.data = Some(first.data());
    let said = Node::new(dir.path(), settings).start().expect_err("two nodes run on one directory");
    assert!(!said.contains("panicked"), "{said}");
    sql::run(&sql::create(&first.path("app.db"), "wal", 4096), "CREATE TABLE t(v)");
}

fn throw(address: SocketAddr, bytes: &[u8]) {
    let Ok(mut stream) = TcpStream::connect(address) else { return };
    let _ = stream.set_read_timeout(Some(Duration::from_millis(200)));
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let _ = stream.take(4096).read_to_end(&mut Vec::new());
}

#[test]
fn garbage_on_both_ports_disturbs_nobody() {
    if !needs_skein() {
        return;
    }
    let Some(mut cluster) = Cluster::primary_and_replicas(1) else { return };
    let writer = sql::create(&cluster.primary.path("app.db"), "wal", 4096);
    sql::run(&writer, "CREATE TABLE t(v); INSERT INTO t VALUES(1)");
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let noise: Vec<u8> =
        (0..70_000_u32).map(|n| u8::try_from(n.wrapping_mul(2_654_435_761) >> 24).unwrap()).collect();
    for address in
        [cluster.primary.listen, cluster.primary.http, cluster.replicas[0].http, cluster.replicas[0].listen]
    {
        throw(address, b"");
        throw(address, b"\r\n\r\n\0\0\0\0");
        throw(address, b"GET / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n");
        throw(address, &noise);
        throw(address, &[&preface[..], &noise].concat());
        throw(address, &[&preface[..], &[0xff; 200]].concat());
    }
    for (method, path, body) in [
        ("GET", "/v1/databases/none.db", &b""[..]),
        ("GET", "/v1/databases/..%2F..%2Fetc%2Fpasswd/export", b""),
        ("GET", "/v1/databases/app.db/wait?txid=zzz", b""),
        ("GET", "/v1/databases/app.db/wait?txid=1&timeout_ms=-4", b""),
        ("PUT", "/v1/databases/app.db", b"this is no database"),
        ("PUT", "/v1/databases/app.db-wal", b"SQLite format 3\0"),
        ("DELETE", "/v1/databases/none.db", b""),
        ("POST", "/v1/status", b"{"),
    ] {
        let reply = http::request(cluster.primary.http, method, path, body).unwrap();
        assert!((400..500).contains(&reply.status), "{method} {path}: {} {}", reply.status, reply.text());
        if reply.status != 405 {
            assert!(
                reply.content_type.starts_with("application/problem+json"),
                "{method} {path}: {}",
                reply.content_type
            );
        }
    }
    sql::run(&writer, "INSERT INTO t VALUES(2)");
    let replica = sql::open(&cluster.replicas[0].path("app.db"));
    eventually("the replica follows", || {
        (sql::number(&replica, "SELECT count(*) FROM t") == 2).then_some(())
    });
    assert!(cluster.primary.is_running() && cluster.replicas[0].is_running());
}

#[test]
fn a_replica_of_another_cluster_is_not_mixed_in() {
    if !needs_skein() {
        return;
    }
    let (Some(one), Some(mut other)) = (Cluster::primary_and_replicas(0), Cluster::primary_and_replicas(1))
    else {
        return;
    };
    for (cluster, rows) in [(&one, "(1)"), (&other, "(1),(2)")] {
        let writer = sql::create(&cluster.primary.path("app.db"), "delete", 4096);
        sql::run(&writer, &format!("CREATE TABLE t(v); INSERT INTO t VALUES{rows}"));
    }
    other.converge("app.db");
    let replica = &mut other.replicas[0];
    replica.terminate();
    replica.settings.join = vec![one.primary.listen];
    if replica.start().is_ok() {
        // It may serve what it has, and must say that this is not its cluster.
        eventually("the log says so", || replica.log().contains("cluster").then_some(()));
        assert_eq!(sql::number(&sql::open(&replica.path("app.db")), "SELECT count(*) FROM t"), 2);
    }
}
