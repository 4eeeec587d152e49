//! Certificates, tokens, and where a node may listen: what the security page promises.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::harness::certs::{Certs, meet};
use crate::harness::{Node, Settings, eventually, http, is_plain, needs_skein, skein, sql};

const READ: &str = "read-0123456789abcdef";
const ADMIN: &str = "admin-0123456789abcdef";
const JOIN: &str = "join-0123456789abcdef";

/// Runs the program, which must fail with `code`; what it says.
fn refusal(words: &[&str], dir: &Path, code: i32) -> String {
    let output = skein().args(words).current_dir(dir).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{words:?}: {said}");
    assert_eq!(said.trim_end().lines().count(), 1, "{words:?}: {said}");
    said
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn certificates_are_made_once_and_their_keys_are_private() {
    if is_plain() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let said = refusal(&["certs", "issue", "n1", "--dir", "none"], dir.path(), 1);
    assert!(said.contains("skein certs init"), "{said}");
    let certs = Certs::init(&dir.path().join("certs"));
    certs.issue("n1");
    assert_eq!(mode(&certs.dir), 0o700);
    for key in ["ca-key.pem", "n1-key.pem"] {
        assert_eq!(mode(&certs.dir.join(key)), 0o600, "{key}");
    }
    let before =
        ["ca.pem", "ca-key.pem", "n1.pem", "n1-key.pem"].map(|name| fs::read(certs.dir.join(name)).unwrap());
    for words in [&["certs", "init"][..], &["certs", "issue", "n1"], &["certs", "issue", "ca"]] {
        let said = refusal(words, dir.path(), 1);
        assert!(said.contains("exists already"), "{said}");
    }
    let after =
        ["ca.pem", "ca-key.pem", "n1.pem", "n1-key.pem"].map(|name| fs::read(certs.dir.join(name)).unwrap());
    assert_eq!(before, after);
    assert!(refusal(&["certs", "issue", "n2", "--address", "no host"], dir.path(), 1).contains("no host"));
    assert!(refusal(&["certs", "issue", "../n2"], dir.path(), 2).contains("../n2"));
    assert_eq!(fs::read_dir(&certs.dir).unwrap().count(), 4);
}

#[test]
fn a_node_listens_to_the_network_only_protected_or_on_demand() {
    if !needs_skein() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let base = ["mount", "--mount", "m", "--data", "d", "--name", "n1", "--bootstrap"];
    let with = |more: &[&str]| refusal(&[&base[..], more].concat(), dir.path(), 2);
    let said = with(&["--listen", "0.0.0.0:0"]);
    assert!(said.contains("--insecure") && said.contains("--tls-cert"), "{said}");
    let said = with(&["--listen", "127.0.0.1:0", "--http", "0.0.0.0:0"]);
    assert!(said.contains("--insecure") && said.contains("--admin-token-file"), "{said}");
    assert!(with(&["--tls-ca", "ca.pem"]).contains("--tls-key"));
    assert!(!dir.path().join("d").exists(), "a refused start left something behind");
    let mut settings = Settings::primary("n1");
    settings.extra = vec!["--insecure".into()];
    let mut node = Node::new(dir.path(), settings);
    node.listen.set_ip([0, 0, 0, 0].into());
    node.must_start();
    assert!(node.log().contains("may join the cluster"), "{}", node.log());
}

/// A request with this token; its status.
fn ask(node: &Node, method: &str, path: &str, token: Option<&str>) -> u16 {
    let header = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    http::request_with(node.http, method, path, &header, b"").unwrap().status
}

#[test]
fn readers_show_a_token_and_who_changes_something_the_admins() {
    if !needs_skein() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let admin = dir.path().join("admin");
    fs::write(&admin, format!("{ADMIN}\n")).unwrap();
    let mut settings = Settings::primary("n1");
    settings.env = vec![("SKEIN_READ_TOKEN".into(), READ.into())];
    settings.extra = vec!["--admin-token-file".into(), admin.display().to_string()];
    let mut node = Node::new(dir.path(), settings);
    node.must_start();
    sql::run(&sql::create(&node.path("app.db"), "wal", 4096), "CREATE TABLE t(v); INSERT INTO t VALUES(1)");
    for path in ["/livez", "/readyz"] {
        assert_eq!(ask(&node, "GET", path, None), 200, "{path}");
    }
    for path in
        ["/metrics", "/v1/status", "/v1/databases/app.db", "/v1/databases/app.db/export", "/v1/members"]
    {
        for (token, status) in [(None, 401), (Some("wrong"), 401), (Some(READ), 200), (Some(ADMIN), 200)] {
            assert_eq!(ask(&node, "GET", path, token), status, "{path} {token:?}");
        }
    }
    for (method, path) in
        [("DELETE", "/v1/databases/app.db"), ("POST", "/v1/handoff"), ("PUT", "/v1/databases/b.db")]
    {
        for (token, status) in [(None, 401), (Some("wrong"), 401), (Some(READ), 403)] {
            assert_eq!(ask(&node, method, path, token), status, "{method} {path} {token:?}");
        }
    }
    // No header invites other sites' pages, and no method asks for one.
    let reply =
        http::request_with(node.http, "OPTIONS", "/v1/status", "Origin: http://evil.example\r\n", b"")
            .unwrap();
    assert_eq!(reply.status, 401);
    let told = node.log().lines().filter(|line| line.contains("refused a request of the API")).count();
    assert_eq!(told, 3, "one line for each reason: {}", node.log());
    let log = node.log();
    assert!(!log.contains(READ) && !log.contains(ADMIN) && !log.contains("wrong\""), "{log}");
    // The command line shows it from a file or the environment.
    let said = String::from_utf8(node.client(&["status"]).stderr).unwrap();
    assert!(said.contains("SKEIN_TOKEN"), "{said}");
    let url = format!("http://{}", node.http);
    let status = skein().args(["status", "--url", &url]).env("SKEIN_TOKEN", READ).output().unwrap();
    assert!(status.status.success(), "{status:?}");
    let file = admin.display().to_string();
    node.must_client(&["db", "drop", "app.db", "--token-file", &file]);
    assert_eq!(ask(&node, "GET", "/v1/databases/app.db", Some(READ)), 404);
    // Another token from now on, without a restart.
    let next = format!("{ADMIN}-next");
    fs::write(&admin, &next).unwrap();
    assert_eq!(ask(&node, "GET", "/v1/status", Some(ADMIN)), 401);
    assert_eq!(ask(&node, "GET", "/v1/status", Some(&next)), 200);
}

#[test]
fn without_tls_a_node_joins_with_the_clusters_token_only() {
    if !needs_skein() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let token = |token: &str| vec![("SKEIN_JOIN_TOKEN".to_owned(), token.to_owned())];
    let mut primary = Node::new(dir.path(), Settings { env: token(JOIN), ..Settings::primary("n1") });
    primary.must_start();
    sql::run(
        &sql::create(&primary.path("app.db"), "wal", 4096),
        "CREATE TABLE t(v); INSERT INTO t VALUES(1)",
    );
    for (name, env) in [("x1", Vec::new()), ("x2", token("another-0123456789"))] {
        let settings = Settings { env, role: "voter", ..Settings::replica(name, primary.listen) };
        let said = Node::new(dir.path(), settings).start().expect_err("a stranger has joined");
        assert!(said.contains("join token") && said.contains("SKEIN_JOIN_TOKEN"), "{said}");
    }
    let members = primary.status().unwrap()["members"].as_array().unwrap().len();
    assert_eq!(members, 1, "a stranger is a member");
    let told = primary.log().lines().filter(|line| line.contains("refused a request of a node")).count();
    assert_eq!(told, 2, "one line for each reason: {}", primary.log());
    let voter = Settings { env: token(JOIN), role: "voter", ..Settings::replica("n2", primary.listen) };
    let replica = Settings { env: token(JOIN), ..Settings::replica("r1", primary.listen) };
    for settings in [voter, replica] {
        let mut node = Node::new(dir.path(), settings);
        node.must_start();
        eventually("the newcomer has the database", || {
            (node.pos("app.db").is_some() && node.pos("app.db") == primary.pos("app.db")).then_some(())
        });
    }
}

#[test]
fn the_api_speaks_tls_where_it_is_told_to() {
    if !needs_skein() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let certs = Certs::init(&dir.path().join("certs"));
    let mut settings = Settings::primary("n1");
    settings.extra = [certs.issue("n1"), vec!["--tls-http".into()]].concat();
    let mut node = Node::new(dir.path(), settings);
    node.must_start();
    let url = format!("https://{}", node.http);
    let status = |more: &[&str]| skein().args(["status", "--url", &url]).args(more).output().unwrap();
    let (ca, other) = (certs.file("ca.pem"), Certs::init(&dir.path().join("other")).file("ca.pem"));
    let done = status(&["--ca", &ca]);
    assert!(done.status.success(), "{done:?}");
    for (more, why) in
        [(&[][..], "--ca"), (&["--ca", &other], "certificate"), (&["--ca", "/nowhere"], "/nowhere")]
    {
        let said = String::from_utf8(status(more).stderr).unwrap();
        assert!(said.contains(why), "{said}");
    }
    let plain = http::request(node.http, "GET", "/livez", b"");
    assert!(plain.as_ref().is_ok_and(|reply| reply.status == 0) || plain.is_err(), "{plain:?}");
}

#[test]
fn certificates_are_read_again_when_they_have_changed() {
    if !needs_skein() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let certs = Certs::init(&dir.path().join("certs"));
    let mut settings = Settings::primary("n1");
    settings.extra = certs.issue("n1");
    let mut node = Node::new(dir.path(), settings);
    node.must_start();
    certs.issue("n2");
    assert_eq!(meet(node.listen, Some((&certs, "n2"))).shown, Some(certs.der("n1")));
    // Half of a change: the old one stays.
    let old = certs.der("n1");
    certs.issue("new");
    fs::copy(certs.file("new.pem"), certs.file("n1.pem")).unwrap();
    let met = meet(node.listen, Some((&certs, "n2")));
    assert!(met.let_in && met.shown == Some(old));
    assert!(node.log().contains("certificates stay as they were"), "{}", node.log());
    fs::copy(certs.file("new-key.pem"), certs.file("n1-key.pem")).unwrap();
    let met = meet(node.listen, Some((&certs, "n2")));
    assert!(met.let_in && met.shown == Some(certs.der("new")));
    // Another authority beside the first one: whoever is of either is let in from now on.
    let other = Certs::init(&dir.path().join("other"));
    other.issue("n3");
    assert!(!meet(node.listen, Some((&other, "n3"))).let_in);
    let both = [&certs, &other].map(|certs| fs::read_to_string(certs.file("ca.pem")).unwrap()).concat();
    fs::write(certs.file("ca.pem"), both).unwrap();
    assert!(meet(node.listen, Some((&other, "n3"))).let_in && meet(node.listen, Some((&certs, "n2"))).let_in);
    assert!(node.is_running());
}
