//! SQL over HTTP on several nodes: reads where they arrive, writes at the primary, and a primary that moves.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::certs::Certs;
use crate::harness::hrana::{Hrana, outcome, parse, rows};
use crate::harness::{Node, Settings, Voters, eventually, needs_skein, sql};

/// Three voters with an empty table `t(v UNIQUE)`.
fn voters() -> Option<Voters> {
    let voters = Voters::three()?;
    let writer = sql::create(&voters.nodes[voters.primary()].path("app.db"), "wal", 4096);
    sql::run(&writer, "CREATE TABLE t(v UNIQUE)");
    drop(writer);
    for node in &voters.nodes {
        eventually("every node has the table", || client(node).execute("SELECT * FROM t").ok());
    }
    Some(voters)
}

fn client(node: &Node) -> Hrana {
    Hrana::new(node.http, "app.db")
}

#[test]
fn a_write_on_any_node_is_done_by_the_primary_and_its_txid_reads_it_everywhere() {
    let Some(mut voters) = voters() else { return };
    voters.add_replica();
    let primary = voters.nodes[voters.primary()].settings.name.clone();
    for round in 0..12 {
        let at = &voters.nodes[round % voters.nodes.len()];
        let requests = json!([
            { "type": "execute", "stmt": { "sql": format!("INSERT INTO t VALUES({round})") } },
            { "type": "close" },
        ]);
        let reply = client(at).post("/v3/pipeline", &json!({ "requests": requests }));
        assert_eq!(reply.header("skein-node"), Some(primary.as_str()));
        let result = outcome(&parse(&reply)["results"][0]).unwrap();
        let index = result["replication_index"].as_str().unwrap();
        let txid = reply.header("skein-txid").unwrap();
        assert_eq!(u64::from_str_radix(txid, 16).unwrap(), index.parse::<u64>().unwrap());
        for node in &voters.nodes {
            let count = format!("SELECT count(*) FROM t WHERE v = {round}");
            let seen =
                client(node).execute_stmt(json!({ "sql": count, "replication_index": index })).unwrap();
            assert_eq!(rows(&seen), [["1"]], "round {round} on {}", node.settings.name);
            let header = client(node).with_header("skein-txid", txid);
            let cookie = client(node).with_header("Cookie", &format!("__txid={txid}"));
            assert_eq!((header.number(&count), cookie.number(&count)), (1, 1));
            let wait = node.must_client(&["wait", "app.db", "--pos", txid]);
            assert!(wait.trim().len() > 16, "{wait}");
        }
    }
    // Reads are done where they arrive.
    for node in &voters.nodes {
        let reply = client(node).post(
            "/v3/pipeline",
            &json!({ "requests": [
            { "type": "execute", "stmt": { "sql": "SELECT count(*) FROM t" } }, { "type": "close" }] }),
        );
        assert_eq!(reply.header("skein-node"), Some(node.settings.name.as_str()));
    }
}

#[test]
fn a_linearizable_read_sees_what_was_committed_before_it_on_every_node() {
    let Some(voters) = voters() else { return };
    let writer = voters.open(voters.primary(), "app.db");
    for round in 0..30 {
        sql::run(&writer, &format!("INSERT INTO t VALUES({round})"));
        for node in &voters.nodes {
            let strict = client(node).with_header("skein-consistency", "linearizable");
            assert_eq!(strict.number("SELECT count(*) FROM t"), round + 1);
        }
    }
    let bad = client(&voters.nodes[0]).with_header("skein-consistency", "strong");
    assert_eq!(bad.execute("SELECT 1").unwrap_err()["code"], "INVALID_REQUEST");
    let fresh = client(&voters.nodes[voters.follower()]).with_header("skein-max-staleness", "10s");
    assert_eq!(fresh.number("SELECT count(*) FROM t"), 30);
}

#[test]
fn an_interactive_transaction_of_any_node_goes_on_through_any_other() {
    let Some(voters) = voters() else { return };
    let (primary, follower) = (voters.primary(), voters.follower());
    let third = 3 - primary - follower;
    let begun = client(&voters.nodes[follower]).pipeline(
        None,
        json!([
            { "type": "store_sql", "sql_id": 4, "sql": "BEGIN IMMEDIATE" },
            { "type": "batch", "batch": { "steps": [
                { "stmt": { "sql_id": 4 } },
                { "stmt": { "sql": "INSERT INTO t VALUES(1)" }, "condition": { "type": "ok", "step": 0 } },
            ] } },
        ]),
    );
    let done = outcome(&begun["results"][1]).unwrap();
    assert_eq!(done["step_errors"], json!([null, null]), "{begun}");
    let baton = begun["baton"].as_str().unwrap();
    assert!(baton.starts_with(&format!("{}.", voters.nodes[primary].settings.name)), "{baton}");
    let next = client(&voters.nodes[third]).pipeline(
        Some(baton),
        json!([
            { "type": "execute", "stmt": { "sql": "INSERT INTO t VALUES(2)" } },
        ]),
    );
    // Not committed, so nobody else has it.
    assert_eq!(client(&voters.nodes[follower]).number("SELECT count(*) FROM t"), 0);
    let ended = client(&voters.nodes[follower]).pipeline(
        next["baton"].as_str(),
        json!([
            { "type": "execute", "stmt": { "sql": "COMMIT" } },
            { "type": "close" },
        ]),
    );
    let index = outcome(&ended["results"][0]).unwrap()["replication_index"].clone();
    for node in &voters.nodes {
        let seen =
            client(node).execute_stmt(json!({ "sql": "SELECT count(*) FROM t", "replication_index": index }));
        assert_eq!(rows(&seen.unwrap()), [["2"]]);
    }
}

#[test]
fn a_stream_that_read_on_its_node_moves_to_the_primary_when_it_writes() {
    let Some(voters) = voters() else { return };
    let follower = &voters.nodes[voters.follower()];
    // As the clients of Rust and Python do: describe first, on a stream that stays.
    let read = client(follower).pipeline(
        None,
        json!([
            { "type": "store_sql", "sql_id": 1, "sql": "INSERT INTO t VALUES(?)" },
            { "type": "describe", "sql_id": 1 },
            { "type": "execute", "stmt": { "sql": "SELECT count(*) FROM t" } },
        ]),
    );
    let baton = read["baton"].as_str().unwrap();
    assert!(baton.starts_with(&format!("{}.", follower.settings.name)), "{baton}");
    let stored = json!({ "sql_id": 1, "args": [{ "type": "integer", "value": "5" }] });
    let written = client(follower).pipeline(
        Some(baton),
        json!([
            { "type": "batch", "batch": { "steps": [{ "stmt": stored }] } },
            { "type": "get_autocommit" },
        ]),
    );
    assert_eq!(outcome(&written["results"][0]).unwrap()["step_errors"], json!([null]), "{written}");
    let primary = &voters.nodes[voters.primary()].settings.name;
    let baton = written["baton"].as_str().unwrap();
    assert!(baton.starts_with(&format!("{primary}.")), "{baton}");
    let stored = json!({ "sql_id": 1, "args": [{ "type": "integer", "value": "6" }] });
    let cursor = client(follower)
        .post("/v3/cursor", &json!({ "baton": baton, "batch": { "steps": [{ "stmt": stored }] } }));
    assert_eq!((cursor.status, cursor.text().contains("step_end")), (200, true), "{}", cursor.text());
    assert_eq!(client(&voters.nodes[voters.primary()]).number("SELECT count(*) FROM t"), 2);
    // A transaction that reads here and then wants to write says what to do instead.
    let begun = client(follower).pipeline(
        None,
        json!([
            { "type": "execute", "stmt": { "sql": "BEGIN TRANSACTION READONLY" } },
            { "type": "execute", "stmt": { "sql": "INSERT INTO t VALUES(7)" } },
        ]),
    );
    assert!(outcome(&begun["results"][0]).is_ok() && outcome(&begun["results"][1]).is_err(), "{begun}");
}

/// What has become of the values that a client wanted to write.
#[derive(Default)]
struct Book {
    acknowledged: BTreeSet<i64>,
    refused: BTreeSet<i64>,
    unknown: BTreeSet<i64>,
}

/// Writes one value after another through one node until told to stop; every third in a transaction of its own.
fn write_until(stop: &AtomicBool, db: &Hrana, values: impl Iterator<Item = i64>) -> Book {
    let mut book = Book::default();
    for value in values {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let insert = format!("INSERT INTO t VALUES({value})");
        let result = if value % 3 == 0 { in_transaction(db, &insert) } else { alone(db, &insert) };
        match result {
            Ok(()) => book.acknowledged.insert(value),
            Err(code) if code == "OUTCOME_UNKNOWN" || code == "BROKEN" => book.unknown.insert(value),
            Err(_) => book.refused.insert(value),
        };
    }
    book
}

fn alone(db: &Hrana, insert: &str) -> Result<(), String> {
    let request =
        json!({ "requests": [{ "type": "execute", "stmt": { "sql": insert } }, { "type": "close" }] });
    let answer = send(db, &request)?;
    outcome(&answer["results"][0]).map(drop).map_err(|error| error["code"].as_str().unwrap().to_owned())
}

fn in_transaction(db: &Hrana, insert: &str) -> Result<(), String> {
    let code = |error: Value| error["code"].as_str().unwrap().to_owned();
    let begin = json!([{ "type": "execute", "stmt": { "sql": "BEGIN IMMEDIATE" } }, { "type": "execute", "stmt": { "sql": insert } }]);
    let begun = send(db, &json!({ "requests": begin }))?;
    for result in begun["results"].as_array().unwrap() {
        outcome(result).map_err(code)?;
    }
    let commit = json!([{ "type": "execute", "stmt": { "sql": "COMMIT" } }, { "type": "close" }]);
    // What is lost on the way to a stream is an unknown outcome by its code, too.
    let ended = send(db, &json!({ "baton": begun["baton"], "requests": commit }))?;
    outcome(&ended["results"][0]).map(drop).map_err(code)
}

/// The answer; the code of a request that is not done.
fn send(db: &Hrana, request: &Value) -> Result<Value, String> {
    let path = format!("{}/v3/pipeline", db.base);
    let reply = crate::harness::http::request(db.address, "POST", &path, request.to_string().as_bytes());
    // The node itself was killed.
    let Ok(reply) = reply else { return Err("BROKEN".into()) };
    if reply.status == 0 {
        return Err("BROKEN".into());
    }
    let answer = parse(&reply);
    if reply.status == 200 { Ok(answer) } else { Err(answer["code"].as_str().unwrap_or_default().to_owned()) }
}

/// Writers on all nodes while `disturb` does its work; checks what they were told against what is there.
fn undisturbed_by(voters: &mut Voters, disturb: impl FnOnce(&mut Voters)) -> usize {
    let stop = AtomicBool::new(false);
    let clients: Vec<Hrana> = voters.nodes.iter().map(client).collect();
    let books: Vec<Book> = thread::scope(|scope| {
        let stop = &stop;
        let writers: Vec<_> = (0i64..)
            .zip(&clients)
            .map(|(which, db)| scope.spawn(move || write_until(stop, db, (0..).map(move |n| n * 10 + which))))
            .collect();
        disturb(voters);
        stop.store(true, Ordering::SeqCst);
        writers.into_iter().map(|writer| writer.join().unwrap()).collect()
    });
    let strict = client(&voters.nodes[voters.primary()]).with_header("skein-consistency", "linearizable");
    let found = eventually("the primary answers", || strict.execute("SELECT v FROM t").ok());
    let there: BTreeSet<i64> =
        rows(&found).iter().map(|row| row[0].as_str().unwrap().parse().unwrap()).collect();
    for book in &books {
        assert!(book.acknowledged.is_subset(&there), "lost: {:?}", book.acknowledged.difference(&there));
        let both: Vec<_> = book.refused.intersection(&there).collect();
        assert!(both.is_empty(), "refused as safe to try again, and there: {both:?}");
        let known: BTreeSet<_> = book.acknowledged.union(&book.unknown).copied().collect();
        assert!(book.refused.is_disjoint(&known));
    }
    voters.same_bytes("app.db");
    books.iter().map(|book| book.acknowledged.len()).sum()
}

#[test]
fn a_planned_move_of_the_primary_loses_nothing_and_says_what_may_be_tried_again() {
    let Some(mut voters) = voters() else { return };
    // Three transactions wait for their clients in the middle.
    let acknowledged = undisturbed_by(&mut voters, |voters| {
        for _ in 0..3 {
            thread::sleep(Duration::from_millis(500));
            let to = voters.follower();
            voters.hand_to(to);
        }
        thread::sleep(Duration::from_millis(500));
    });
    assert!(acknowledged > 20, "{acknowledged}");
}

#[test]
fn a_transaction_that_waits_for_its_client_does_not_hold_up_a_planned_move() {
    let Some(voters) = voters() else { return };
    let primary = voters.primary();
    let begun = client(&voters.nodes[primary]).pipeline(
        None,
        json!([
            { "type": "execute", "stmt": { "sql": "BEGIN IMMEDIATE" } },
            { "type": "execute", "stmt": { "sql": "INSERT INTO t VALUES(1)" } },
        ]),
    );
    let to = voters.follower();
    voters.hand_to(to);
    let ended = client(&voters.nodes[to]).pipeline(
        begun["baton"].as_str(),
        json!([
            { "type": "execute", "stmt": { "sql": "COMMIT" } },
            { "type": "close" },
        ]),
    );
    let error = outcome(&ended["results"][0]).unwrap_err();
    assert_eq!(error["code"], "TRANSACTION_LOST", "{error}");
    assert!(error["message"].as_str().unwrap().contains("may be tried again"), "{error}");
    assert_eq!(client(&voters.nodes[primary]).number("SELECT count(*) FROM t"), 0);
    assert!(client(&voters.nodes[primary]).execute("INSERT INTO t VALUES(1)").is_ok());
}

#[test]
fn a_killed_primary_loses_no_acknowledged_write() {
    let Some(mut voters) = voters() else { return };
    let acknowledged = undisturbed_by(&mut voters, |voters| {
        thread::sleep(Duration::from_secs(1));
        let killed = voters.primary();
        voters.nodes[killed].kill9();
        let rest: Vec<_> = (0..3).filter(|which| *which != killed).collect();
        let _elected = voters.primary_among(&rest);
        thread::sleep(Duration::from_millis(500));
        voters.nodes[killed].must_start();
        voters.wait_voting(3);
        thread::sleep(Duration::from_millis(500));
    });
    assert!(acknowledged > 20, "{acknowledged}");
}

#[test]
fn between_nodes_with_certificates_writes_go_through_tls_with_their_clients_token() {
    if !needs_skein() {
        return;
    }
    let dir = tempfile::Builder::new().prefix("skein-sql-tls-").tempdir().unwrap();
    let certs = Certs::init(&dir.path().join("certs"));
    let tokens = |name: &str| {
        let mut extra = certs.issue(name);
        for (kind, token) in [("admin", "admin-admin-admin-admin"), ("read", "read-read-read-read")] {
            let file = dir.path().join(kind);
            std::fs::write(&file, token).unwrap();
            extra.extend([format!("--{kind}-token-file"), file.display().to_string()]);
        }
        extra
    };
    let mut first = Node::new(dir.path(), Settings { extra: tokens("n1"), ..Settings::primary("n1") });
    first.must_start();
    drop(sql::create(&first.path("app.db"), "wal", 4096));
    let settings = Settings { extra: tokens("r1"), ..Settings::replica("r1", first.listen) };
    let mut replica = Node::new(dir.path(), settings);
    replica.must_start();
    let (admin, read) = (
        client(&replica).with_token("admin-admin-admin-admin"),
        client(&replica).with_token("read-read-read-read"),
    );
    let created = admin.execute("CREATE TABLE t(v)").unwrap();
    let index = &created["replication_index"];
    let counted = read.execute_stmt(json!({ "sql": "SELECT count(*) FROM t", "replication_index": index }));
    assert_eq!(rows(&counted.unwrap()), [["0"]]);
    assert_eq!(read.execute("INSERT INTO t VALUES(1)").unwrap_err()["code"], "BLOCKED");
    let begun = admin.pipeline(None, json!([{ "type": "execute", "stmt": { "sql": "BEGIN IMMEDIATE" } }]));
    // The baton of an admin is of no use to who may only read.
    let stolen = read.post("/v3/pipeline", &json!({ "baton": begun["baton"], "requests": [] }));
    assert_eq!(stolen.status, 400, "{}", stolen.text());
    assert_eq!(client(&replica).post("/v3/pipeline", &json!({ "requests": [] })).status, 401);
}
