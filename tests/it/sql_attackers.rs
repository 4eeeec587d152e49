//! Who asks by SQL for what is not theirs: other files, other databases, other clients' streams, all of the memory.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::harness::hrana::{Hrana, parse};
use crate::harness::{Node, Settings, can_mount, eventually, http, is_plain, sql};

fn node_with(dir: &std::path::Path, extra: Vec<String>) -> Option<Node> {
    if !can_mount() || is_plain() {
        return None;
    }
    let mut node = Node::new(dir, Settings { extra, ..Settings::primary("n1") });
    node.must_start();
    for db in ["app.db", "other.db"] {
        sql::run(
            &sql::create(&node.path(db), "wal", 4096),
            "CREATE TABLE t(v); INSERT INTO t VALUES('secret')",
        );
    }
    Some(node)
}

#[test]
fn a_statement_does_not_leave_its_database() {
    let dir = tempfile::Builder::new().prefix("skein-sql-").tempdir().unwrap();
    let Some(node) = node_with(dir.path(), Vec::new()) else { return };
    let db = Hrana::new(node.http, "app.db");
    let (other, new) = (node.path("other.db"), dir.path().join("made"));
    for sql in [
        format!("ATTACH '{}' AS o", other.display()),
        format!("ATTACH 'file:{}?mode=ro' AS o", other.display()),
        format!("ATTACH replace('{}', '', '') AS o", other.display()),
        format!("VACUUM INTO '{}'", new.display()),
        "SELECT load_extension('/lib/x.so')".to_owned(),
        "SELECT readfile('/etc/passwd')".to_owned(),
        "SELECT writefile('/tmp/x', 'y')".to_owned(),
        format!("CREATE VIRTUAL TABLE c USING csv(filename='{}')", other.display()),
        "PRAGMA temp_store_directory = '/tmp'".to_owned(),
        "PRAGMA journal_mode = OFF".to_owned(),
        "PRAGMA synchronous = OFF".to_owned(),
        "PRAGMA locking_mode = EXCLUSIVE".to_owned(),
        "PRAGMA writable_schema = ON".to_owned(),
        "UPDATE sqlite_schema SET sql = 'x'".to_owned(),
    ] {
        let failed = db.execute(&sql);
        assert!(failed.is_err(), "{sql}: {failed:?}");
        // In a script, and inside a transaction, too.
        let requests =
            json!([{ "type": "sequence", "sql": format!("BEGIN; {sql}; COMMIT") }, { "type": "close" }]);
        assert_eq!(db.pipeline(None, requests)["results"][0]["type"], "error", "{sql}");
    }
    assert!(!new.exists());
    let lasting =
        "SELECT (SELECT journal_mode FROM pragma_journal_mode), (SELECT synchronous FROM pragma_synchronous)";
    assert_eq!(db.rows(lasting), [["wal", "2"]]);
    for name in
        ["../app.db", "/etc/passwd", "app.db-wal", "app.db-pos", ".primary", "a/../../x.db", "", "x\0y"]
    {
        let outside =
            Hrana { base: format!("/dev/{}", name.replace('/', "%2F").replace('\0', "%00")), ..db.clone() };
        let reply = outside.post("/v3/pipeline", &json!({ "requests": [{ "type": "close" }] }));
        assert!((400..500).contains(&reply.status), "{name:?}: {} {}", reply.status, reply.text());
    }
}

#[test]
fn huge_requests_answers_and_values_are_refused_with_what_bounds_them() {
    let dir = tempfile::Builder::new().prefix("skein-sql-").tempdir().unwrap();
    let limits =
        ["--sql-request-bytes", "64KiB", "--sql-response-bytes", "1MiB", "--sql-response-rows", "1000"];
    let Some(node) = node_with(dir.path(), limits.map(str::to_owned).to_vec()) else { return };
    let db = Hrana::new(node.http, "app.db");
    let reply = db.post("/v3/pipeline", &json!({ "requests": [], "x": "x".repeat(100 << 10) }));
    assert_eq!((reply.status, parse(&reply)["code"].as_str()), (413, Some("REQUEST_TOO_LARGE")));
    let numbers = |count| {
        format!(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count}) SELECT i FROM n"
        )
    };
    assert_eq!(db.rows(&numbers(1000)).len(), 1000);
    assert_eq!(db.code(&numbers(1001)), "RESPONSE_TOO_LARGE");
    assert_eq!(db.code("SELECT randomblob(900000)"), "RESPONSE_TOO_LARGE");
    assert_eq!(db.code("SELECT zeroblob(2000000)"), "SQLITE_TOOBIG");
    assert_eq!(db.code("SELECT printf('%.*c', 2000000, 'x')"), "SQLITE_TOOBIG");
    // Several statements of one request share what an answer may have.
    let one = json!({ "type": "execute", "stmt": { "sql": "SELECT randomblob(300000)" } });
    let answer = db.pipeline(None, json!([one, one, one, { "type": "close" }]));
    let kinds: Vec<_> =
        answer["results"].as_array().unwrap().iter().map(|result| result["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["ok", "ok", "error", "ok"]);
    let deep = format!(
        "{}{}",
        r#"{"type":"not","cond":"#.repeat(2000),
        r#"{"type":"ok","step":0}"#.to_owned() + &"}".repeat(2000)
    );
    let body = format!(
        r#"{{"requests":[{{"type":"batch","batch":{{"steps":[{{"stmt":{{"sql":"SELECT 1"}},"condition":{deep}}}]}}}}]}}"#
    );
    let reply = http::request(node.http, "POST", "/dev/app.db/v3/pipeline", body.as_bytes()).unwrap();
    assert_eq!(reply.status, 400, "{}", reply.text());
    assert_eq!(db.rows("SELECT 'alive'"), [["alive"]]);
}

#[test]
fn idle_streams_are_bounded_and_go_by_themselves() {
    let dir = tempfile::Builder::new().prefix("skein-sql-").tempdir().unwrap();
    let options = ["--sql-streams", "20", "--sql-connections", "30", "--sql-stream-idle-timeout", "1s"];
    let Some(node) = node_with(dir.path(), options.map(str::to_owned).to_vec()) else { return };
    let db = Hrana::new(node.http, "app.db");
    let open = || {
        db.post(
            "/v3/pipeline",
            &json!({ "requests": [{ "type": "execute", "stmt": { "sql": "SELECT 1" } }] }),
        )
    };
    let answers: Vec<_> = (0..200).map(|_| open()).collect();
    assert!(answers.iter().all(|reply| matches!(reply.status, 200 | 503)));
    let refused = answers.iter().find(|reply| reply.status == 503).expect("20 are allowed");
    assert_eq!(parse(refused)["code"], "TOO_MANY_STREAMS");
    // Who needs no stream is served meanwhile, and others as soon as the idle ones have gone.
    assert_eq!(db.rows("SELECT 'served'"), [["served"]]);
    eventually("the idle streams have gone", || (open().status == 200).then_some(()));
}

#[test]
fn batons_are_not_guessed_reused_or_taken_to_another_database() {
    let dir = tempfile::Builder::new().prefix("skein-sql-").tempdir().unwrap();
    let Some(node) = node_with(dir.path(), Vec::new()) else { return };
    let db = Hrana::new(node.http, "app.db");
    let begun = db.pipeline(None, json!([{ "type": "execute", "stmt": { "sql": "BEGIN" } }]));
    let baton = begun["baton"].as_str().unwrap();
    let (mut guess, last) = (baton.to_owned(), baton.chars().last().unwrap());
    guess.pop();
    guess.push(if last == '0' { '1' } else { '0' });
    let zeros = format!("n1.{}", "0".repeat(64));
    for forged in
        [guess.as_str(), "", ".", "n1.", &zeros, &format!("n9.{}", &baton[3..]), "n1.ä", &"x".repeat(10_000)]
    {
        let reply = db.post("/v3/pipeline", &json!({ "baton": forged, "requests": [] }));
        assert_eq!(
            (reply.status, parse(&reply)["code"].as_str()),
            (400, Some("STREAM_EXPIRED")),
            "{forged:?}"
        );
    }
    let elsewhere =
        Hrana::new(node.http, "other.db").post("/v3/pipeline", &json!({ "baton": baton, "requests": [] }));
    assert_eq!(elsewhere.status, 400);
    let goes_on = db.pipeline(Some(baton), json!([{ "type": "get_autocommit" }, { "type": "close" }]));
    assert_eq!(goes_on["results"][0]["response"]["is_autocommit"], false);
}

/// An ed25519 key and what signs with it.
struct Signer(rcgen::KeyPair);

impl Signer {
    fn new() -> Self {
        Self(rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap())
    }

    fn sign(&self, header: &Value, claims: &Value) -> String {
        use rcgen::SigningKey;
        let text = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string())).join(".");
        let signature = self.0.sign(text.as_bytes()).unwrap();
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

#[test]
fn a_signed_token_opens_what_it_names_and_a_forged_one_nothing() {
    let dir = tempfile::Builder::new().prefix("skein-sql-").tempdir().unwrap();
    let (signer, stranger) = (Signer::new(), Signer::new());
    let key = dir.path().join("key.pem");
    std::fs::write(&key, signer.0.public_key_pem()).unwrap();
    let options = vec!["--sql-jwt-key-file".to_owned(), key.display().to_string()];
    let Some(node) = node_with(dir.path(), options) else { return };
    let eddsa = json!({ "alg": "EdDSA", "typ": "JWT" });
    let (app, other) = (Hrana::new(node.http, "app.db"), Hrana::new(node.http, "other.db"));
    let code = |db: &Hrana, token: &str, sql: &str| match db.with_token(token).execute(sql) {
        Ok(_) => "ok".to_owned(),
        Err(error) => error["code"].as_str().unwrap_or("401").to_owned(),
    };
    let (read, write) = ("SELECT v FROM t", "INSERT INTO t VALUES(1)");
    for (claims, expected) in [
        (json!({}), ["ok", "ok", "ok"]),
        (json!({ "a": "rw" }), ["ok", "ok", "ok"]),
        (json!({ "a": "ro" }), ["ok", "BLOCKED", "ok"]),
        (json!({ "p": { "ro": { "ns": ["app.*"] } } }), ["ok", "BLOCKED", "BLOCKED"]),
        (json!({ "p": { "rw": { "ns": ["app.db"] } } }), ["ok", "ok", "BLOCKED"]),
        (json!({ "p": { "rw": { "ns": [] } } }), ["BLOCKED", "BLOCKED", "BLOCKED"]),
        (json!({ "exp": 1 }), ["401", "401", "401"]),
        (json!({ "a": "root" }), ["401", "401", "401"]),
    ] {
        let token = signer.sign(&eddsa, &claims);
        let found = [code(&app, &token, read), code(&app, &token, write), code(&other, &token, read)];
        assert_eq!(found, expected, "{claims}");
    }
    let good = signer.sign(&eddsa, &json!({}));
    let (claims, signature) = good.rsplit_once('.').unwrap();
    let none =
        [json!({ "alg": "none" }), json!({})].map(|part| URL_SAFE_NO_PAD.encode(part.to_string())).join(".");
    for forged in [
        stranger.sign(&eddsa, &json!({})),
        signer.sign(&json!({ "alg": "HS256" }), &json!({})),
        format!("{none}."),
        format!("{claims}."),
        format!("{}.{signature}", claims.replace('.', "x.")),
        "None".to_owned(),
        String::new(),
    ] {
        assert_eq!(code(&app, &forged, read), "401", "{forged}");
    }
    assert_eq!(app.post("/v3/pipeline", &json!({ "requests": [] })).status, 401, "no token at all");
}

#[test]
fn pages_of_other_sites_execute_nothing_unless_they_are_named() {
    let dir = tempfile::Builder::new().prefix("skein-sql-").tempdir().unwrap();
    let options = ["--sql-cors-origins", "https://app.example.com,http://localhost:3000"];
    let Some(node) = node_with(dir.path(), options.map(str::to_owned).to_vec()) else { return };
    let db = Hrana::new(node.http, "app.db");
    let ask = |origin: &str| {
        db.with_header("Origin", origin).post("/v3/pipeline", &json!({ "requests": [{ "type": "close" }] }))
    };
    let preflight = |origin: &str| {
        let headers = format!("Origin: {origin}\r\nAccess-Control-Request-Method: POST\r\n");
        http::request_with(node.http, "OPTIONS", "/dev/app.db/v3/pipeline", &headers, b"").unwrap()
    };
    for origin in ["https://app.example.com", "http://localhost:3000"] {
        for (reply, status) in [(preflight(origin), 204), (ask(origin), 200)] {
            assert_eq!((reply.status, reply.header("access-control-allow-origin")), (status, Some(origin)));
        }
    }
    for origin in ["https://evil.example", "null", "https://app.example.com.evil.example"] {
        assert_eq!(
            (ask(origin).status, ask(origin).header("access-control-allow-origin")),
            (403, None),
            "{origin}"
        );
        assert_eq!(preflight(origin).header("access-control-allow-origin"), None);
    }
    // The rest of the API is not for them.
    let headers = "Origin: https://app.example.com\r\n";
    let reply = http::request_with(node.http, "DELETE", "/v1/databases/app.db", headers, b"").unwrap();
    assert_eq!((reply.status, reply.header("access-control-allow-origin")), (403, None));
}

#[test]
fn a_killed_engine_is_started_again_and_an_ended_node_leaves_none() {
    let dir = tempfile::Builder::new().prefix("skein-sql-").tempdir().unwrap();
    let Some(mut node) = node_with(dir.path(), Vec::new()) else { return };
    let db = Hrana::new(node.http, "app.db");
    assert_eq!(db.rows("SELECT 1"), [["1"]]);
    let engines = |parent: u32| -> Vec<u32> {
        let children =
            std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
        let all = std::fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let is_child = |pid: &u32| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            status.contains(&format!("PPid:\t{parent}\n"))
                && line.windows(10).any(|part| part == b"sql-engine")
        };
        let found: Vec<u32> = all.filter(is_child).collect();
        assert!(found.len() <= 1, "{found:?} {children}");
        found
    };
    let first = engines(node.pid())[0];
    let kill = |pid: u32| {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), nix::sys::signal::Signal::SIGKILL)
    };
    kill(first).unwrap();
    eventually("another engine answers", || db.execute("INSERT INTO t VALUES(1)").ok());
    let second = engines(node.pid())[0];
    assert_ne!(first, second);
    // A Ctrl-C of the terminal reaches the engine, too; it goes on until the node lets go of it.
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(second as i32), nix::sys::signal::Signal::SIGINT)
        .unwrap();
    assert_eq!(db.number("SELECT count(*) FROM t"), 2);
    assert_eq!(engines(node.pid()), [second]);
    node.kill9();
    eventually("the engine ends with its node", || {
        (!std::path::Path::new(&format!("/proc/{second}/exe")).exists()).then_some(())
    });
    node.must_start();
    assert_eq!(db.number("SELECT count(*) FROM t"), 2);
    let third = engines(node.pid())[0];
    node.terminate();
    assert!(!std::path::Path::new(&format!("/proc/{third}/exe")).exists());
}

#[test]
fn a_slow_or_silent_client_holds_nothing_up() {
    let dir = tempfile::Builder::new().prefix("skein-sql-").tempdir().unwrap();
    let options = ["--sql-connections", "2", "--sql-statement-timeout", "2s"];
    let Some(node) = node_with(dir.path(), options.map(str::to_owned).to_vec()) else { return };
    let db = Hrana::new(node.http, "app.db");
    let numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i, printf('%.*c', 10000, 'x') FROM n";
    let body = json!({ "batch": { "steps": [{ "stmt": { "sql": numbers } }] } }).to_string();
    // They take nothing of an answer without end.
    let silent: Vec<_> = (0..2)
        .map(|_| {
            let mut stream = TcpStream::connect(node.http).unwrap();
            let head = format!(
                "POST /dev/app.db/v3/cursor HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\n\r\n{body}",
                node.http,
                body.len()
            );
            stream.write_all(head.as_bytes()).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            stream.read_exact(&mut [0; 12]).unwrap();
            stream
        })
        .collect();
    eventually("their connections are free again", || db.execute("SELECT 1").ok());
    drop(silent);
}
