//! SQL over HTTP on one node: Hrana's requests, their traps, and the limits.

use std::io::Read;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::hrana::{Hrana, outcome, parse, rows};
use crate::harness::{Node, Settings, can_mount, eventually, http, is_plain, sql};

/// A node with an empty database in WAL mode.
fn node_with(extra: &[&str]) -> Option<(Node, Hrana, tempfile::TempDir)> {
    if !can_mount() || is_plain() {
        return None;
    }
    let dir = tempfile::Builder::new().prefix("skein-sql-").tempdir().unwrap();
    let extra = extra.iter().map(ToString::to_string).collect();
    let mut node = Node::new(dir.path(), Settings { extra, ..Settings::primary("n1") });
    node.must_start();
    drop(sql::create(&node.path("app.db"), "wal", 4096));
    let hrana = Hrana::new(node.http, "app.db");
    Some((node, hrana, dir))
}

#[test]
fn values_of_all_types_survive_and_integers_have_64_bits() {
    let Some((_node, db, _dir)) = node_with(&[]) else { return };
    db.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, i INTEGER, r REAL, s TEXT, b BLOB, x)").unwrap();
    let args = json!([
        { "type": "integer", "value": "9223372036854775807" },
        { "type": "float", "value": 0.1 },
        { "type": "text", "value": "ä\u{0}\"\u{1f980}" },
        { "type": "blob", "base64": "AAH/" },
        { "type": "null" },
    ]);
    let inserted = db.execute_with("INSERT INTO t(i, r, s, b, x) VALUES(?, ?, ?, ?, ?)", args).unwrap();
    assert_eq!(
        (inserted["affected_row_count"].as_u64(), inserted["last_insert_rowid"].as_str()),
        (Some(1), Some("1"))
    );
    let read = db.execute("SELECT i, r, s, b, x FROM t").unwrap();
    assert_eq!(
        rows(&read)[0],
        [json!("9223372036854775807"), json!(0.1), json!("ä\u{0}\"\u{1f980}"), json!("AAH/"), Value::Null]
    );
    assert_eq!(read["cols"][0], json!({ "name": "i", "decltype": "INTEGER" }));
    assert!(read["last_insert_rowid"].is_null() && read.get("last_insert_rowid").is_some(), "{read}");
    // JavaScript sends every number as a float: the column's affinity makes it an integer, and no affinity leaves it.
    let seven = json!([{ "type": "float", "value": 7 }, { "type": "float", "value": 7 }]);
    db.execute_with("INSERT INTO t(i, x) VALUES(?, ?)", seven.clone()).unwrap();
    let types = db.rows("SELECT typeof(i), typeof(x) FROM t WHERE id = 2");
    assert_eq!(types[0], ["integer", "real"]);
    assert_eq!(rows(&db.execute_with("SELECT 1 LIMIT ?", json!([seven[0]])).unwrap()).len(), 1);
    let infinite = db.post(
        "/v3/pipeline",
        &json!({"requests": [{"type": "execute", "stmt": {"sql": "SELECT 1e999, -1e999"}}]}),
    );
    assert!(
        infinite.text().contains(r#"{"type":"float","value":1e999},{"type":"float","value":-1e999}"#),
        "{}",
        infinite.text()
    );
    assert_eq!(db.code("SELECT CAST(x'ff' AS TEXT)"), "TEXT_NOT_UTF8");
}

#[test]
fn arguments_are_bound_by_place_and_by_name_and_missing_ones_are_told() {
    let Some((_node, db, _dir)) = node_with(&[]) else { return };
    let text = |value: &str| json!({ "type": "text", "value": value });
    let named = |sql: &str, pairs: &[(&str, &str)]| {
        let args: Vec<_> =
            pairs.iter().map(|(name, value)| json!({ "name": name, "value": text(value) })).collect();
        db.execute_stmt(json!({ "sql": sql, "named_args": args, "args": null }))
            .or_else(|_| db.execute_stmt(json!({ "sql": sql, "named_args": args })))
    };
    for prefix in [":", "@", "$"] {
        let found =
            named(&format!("SELECT {prefix}a, {prefix}b"), &[("b", "2"), (&format!("{prefix}a"), "1")]);
        assert_eq!(rows(&found.unwrap())[0], ["1", "2"], "{prefix}");
    }
    let found = db.execute_with("SELECT ?2, ?1", json!([text("1"), text("2")])).unwrap();
    assert_eq!(rows(&found)[0], ["2", "1"]);
    for (sql, args) in
        [("SELECT ?", json!([])), ("SELECT ?", json!([text("1"), text("2")])), ("SELECT :a", json!([]))]
    {
        assert_eq!(db.execute_with(sql, args).unwrap_err()["code"], "ARGS_INVALID", "{sql}");
    }
}

#[test]
fn every_error_has_a_code_and_the_requests_behind_it_are_done() {
    let Some((_node, db, _dir)) = node_with(&[]) else { return };
    db.execute("CREATE TABLE t(v UNIQUE NOT NULL)").unwrap();
    db.execute("INSERT INTO t VALUES(1)").unwrap();
    for (sql, code) in [
        ("INSERT INTO t VALUES(1)", "SQLITE_CONSTRAINT"),
        ("SELECT * FROM missing", "SQL_INPUT_ERROR"),
        ("SELEC 1", "SQL_INPUT_ERROR"),
        ("", "SQL_NO_STATEMENT"),
        ("-- nothing", "SQL_NO_STATEMENT"),
        ("SELECT 1; SELECT 2", "SQL_MANY_STATEMENTS"),
        ("PRAGMA journal_mode=DELETE", "SQLITE_AUTH"),
    ] {
        assert_eq!(db.code(sql), code, "{sql}");
    }
    let answer = db.pipeline(
        None,
        json!([
            { "type": "execute", "stmt": { "sql": "SELEC" } },
            { "type": "execute", "stmt": { "sql": "SELECT 'after; all'" } },
            { "type": "execute", "stmt": { "sql_id": 9 } },
            { "type": "close" },
            { "type": "get_autocommit" },
        ]),
    );
    let results = answer["results"].as_array().unwrap();
    assert_eq!(results.len(), 5);
    assert_eq!(outcome(&results[1]).unwrap()["rows"][0][0]["value"], "after; all");
    assert_eq!(outcome(&results[2]).unwrap_err()["code"], "SQL_NOT_FOUND");
    assert_eq!(outcome(&results[4]).unwrap_err()["code"], "STREAM_CLOSED");
    for body in ["", "[]", "{", r#"{"requests":[{"type":"explode"}]}"#, r#"{"requests":{}}"#] {
        let path = format!("{}/v3/pipeline", db.base);
        let reply = http::request(db.address, "POST", &path, body.as_bytes()).unwrap();
        assert_eq!((reply.status, parse(&reply)["code"].as_str()), (400, Some("INVALID_REQUEST")), "{body}");
    }
}

#[test]
fn batches_do_the_steps_whose_conditions_hold() {
    let Some((_node, db, _dir)) = node_with(&[]) else { return };
    db.execute("CREATE TABLE t(v UNIQUE)").unwrap();
    // As libSQL's client of JavaScript writes a transaction.
    let batch = |values: &[&str]| {
        let mut steps = vec![json!({ "stmt": { "sql": "BEGIN IMMEDIATE" } })];
        for value in values {
            let before = steps.len() - 1;
            let sql = format!("INSERT INTO t VALUES({value})");
            steps.push(json!({ "stmt": { "sql": sql }, "condition": { "type": "ok", "step": before } }));
        }
        let last = steps.len() - 1;
        steps.push(json!({ "stmt": { "sql": "COMMIT" }, "condition": { "type": "ok", "step": last } }));
        steps.push(json!({
            "stmt": { "sql": "ROLLBACK" },
            "condition": { "type": "not", "cond": { "type": "ok", "step": last + 1 } },
        }));
        let answer =
            db.pipeline(None, json!([{ "type": "batch", "batch": { "steps": steps } }, { "type": "close" }]));
        outcome(&answer["results"][0]).unwrap()
    };
    let done = batch(&["1", "2"]);
    assert!(done["step_errors"].as_array().unwrap().iter().all(Value::is_null), "{done}");
    assert!(done["step_results"][4].is_null(), "no rollback: {done}");
    let failed = batch(&["3", "1", "4"]);
    assert_eq!(failed["step_errors"][2]["code"], "SQLITE_CONSTRAINT");
    assert!(failed["step_results"][3].is_null() && failed["step_errors"][3].is_null(), "skipped: {failed}");
    assert!(failed["step_results"][5].is_object(), "rolled back: {failed}");
    assert_eq!(db.number("SELECT count(*) FROM t"), 2);
    let reply = db.post("/v1/batch", &json!({ "batch": { "steps": [{ "stmt": { "sql": "SELECT 5" } }] } }));
    assert_eq!(parse(&reply)["result"]["step_results"][0]["rows"][0][0]["value"], "5");
    let reply = db.post("/v1/execute", &json!({ "stmt": { "sql": "SELEC" } }));
    assert_eq!((reply.status, parse(&reply)["code"].as_str()), (400, Some("SQL_INPUT_ERROR")));
}

#[test]
fn a_transaction_goes_from_baton_to_baton_and_each_is_used_once() {
    let Some((node, db, _dir)) = node_with(&["--sql-stream-idle-timeout", "2s"]) else { return };
    db.execute("CREATE TABLE t(v)").unwrap();
    let begun = db.pipeline(
        None,
        json!([
            { "type": "store_sql", "sql_id": 1, "sql": "INSERT INTO t VALUES(?)" },
            { "type": "execute", "stmt": { "sql": "BEGIN IMMEDIATE" } },
        ]),
    );
    let first = begun["baton"].as_str().unwrap().to_owned();
    let stored =
        json!({ "type": "execute", "stmt": { "sql_id": 1, "args": [{ "type": "integer", "value": "1" }] } });
    let second = db.pipeline(Some(&first), json!([stored, { "type": "get_autocommit" }]));
    assert_eq!(second["results"][1]["response"]["is_autocommit"], false);
    let again = db.post("/v3/pipeline", &json!({ "baton": first, "requests": [] }));
    assert_eq!((again.status, parse(&again)["code"].as_str()), (400, Some("STREAM_EXPIRED")));
    // Nobody else sees it before it is committed.
    assert_eq!(db.number("SELECT count(*) FROM t"), 0);
    let baton = second["baton"].as_str().unwrap();
    let done = db.pipeline(
        Some(baton),
        json!([{ "type": "execute", "stmt": { "sql": "COMMIT" } }, { "type": "close" }]),
    );
    assert!(done["baton"].is_null(), "{done}");
    assert_eq!(db.number("SELECT count(*) FROM t"), 1);
    assert_eq!(sql::number(&sql::open(&node.path("app.db")), "SELECT count(*) FROM t"), 1);
    // Who leaves a transaction alone loses it, and others can write again.
    let begun = db.pipeline(None, json!([{ "type": "execute", "stmt": { "sql": "BEGIN IMMEDIATE" } }]));
    eventually("the abandoned transaction is over", || db.execute("INSERT INTO t VALUES(2)").ok());
    let late = db.post("/v3/pipeline", &json!({ "baton": begun["baton"], "requests": [] }));
    assert_eq!((late.status, parse(&late)["code"].as_str()), (400, Some("STREAM_EXPIRED")));
}

#[test]
fn a_transaction_that_takes_too_long_is_rolled_back_and_says_so() {
    let Some((_node, db, _dir)) = node_with(&["--sql-transaction-timeout", "500ms"]) else { return };
    db.execute("CREATE TABLE t(v)").unwrap();
    let begun = db.pipeline(
        None,
        json!([
            { "type": "execute", "stmt": { "sql": "BEGIN" } },
            { "type": "execute", "stmt": { "sql": "INSERT INTO t VALUES(1)" } },
        ]),
    );
    eventually("another writer gets its turn", || db.execute("INSERT INTO t VALUES(2)").ok());
    let late =
        db.pipeline(begun["baton"].as_str(), json!([{ "type": "execute", "stmt": { "sql": "COMMIT" } }]));
    assert_eq!(outcome(&late["results"][0]).unwrap_err()["code"], "TRANSACTION_TIMEOUT");
    // Told once; the stream itself goes on.
    let next = db.pipeline(
        late["baton"].as_str(),
        json!([{ "type": "execute", "stmt": { "sql": "SELECT v FROM t" } }]),
    );
    assert_eq!(rows(&outcome(&next["results"][0]).unwrap()), [["2"]]);
}

#[test]
fn readonly_transactions_do_not_write() {
    let Some((_node, db, _dir)) = node_with(&[]) else { return };
    db.execute("CREATE TABLE t(v)").unwrap();
    let answer = db.pipeline(
        None,
        json!([
            { "type": "execute", "stmt": { "sql": "BEGIN TRANSACTION READONLY" } },
            { "type": "execute", "stmt": { "sql": "SELECT count(*) FROM t" } },
            { "type": "execute", "stmt": { "sql": "INSERT INTO t VALUES(1)" } },
            { "type": "execute", "stmt": { "sql": "COMMIT" } },
            { "type": "execute", "stmt": { "sql": "INSERT INTO t VALUES(2)" } },
            { "type": "close" },
        ]),
    );
    let results = answer["results"].as_array().unwrap();
    assert_eq!(outcome(&results[2]).unwrap_err()["code"], "SQLITE_READONLY");
    assert!(outcome(&results[4]).is_ok(), "{answer}");
    assert_eq!(db.rows("SELECT v FROM t"), [["2"]]);
}

#[test]
fn sequences_descriptions_and_migrations_work() {
    let Some((_node, db, _dir)) = node_with(&[]) else { return };
    let script =
        "CREATE TABLE a(v TEXT); CREATE TRIGGER g AFTER INSERT ON a BEGIN INSERT INTO b VALUES(1); END;
                  CREATE TABLE b(v); INSERT INTO a VALUES(';'); -- end";
    let answer = db.pipeline(
        None,
        json!([
            { "type": "sequence", "sql": script },
            { "type": "describe", "sql": "SELECT v AS w FROM a WHERE v = :x AND 1 = ?" },
            { "type": "describe", "sql": "INSERT INTO a VALUES(1)" },
            { "type": "describe", "sql": "EXPLAIN SELECT 1" },
            { "type": "sequence", "sql": "INSERT INTO a VALUES(1); SELEC; INSERT INTO a VALUES(2)" },
            { "type": "close" },
        ]),
    );
    let results = answer["results"].as_array().unwrap();
    let description = outcome(&results[1]).unwrap();
    assert_eq!(description["params"], json!([{ "name": ":x" }, { "name": null }]));
    assert_eq!(description["cols"], json!([{ "name": "w", "decltype": "TEXT" }]));
    assert_eq!((&description["is_readonly"], &description["is_explain"]), (&json!(true), &json!(false)));
    assert_eq!(outcome(&results[2]).unwrap()["is_readonly"], false);
    assert_eq!(outcome(&results[3]).unwrap()["is_explain"], true);
    assert_eq!(outcome(&results[4]).unwrap_err()["code"], "SQL_INPUT_ERROR");
    assert_eq!(db.number("SELECT (SELECT count(*) FROM a) * 10 + (SELECT count(*) FROM b)"), 22);
    // Foreign keys are off for one stream only.
    let migration =
        ["PRAGMA foreign_keys=off", "BEGIN", "CREATE TABLE c(v)", "COMMIT", "PRAGMA foreign_keys=on"];
    let steps: Vec<_> = migration.iter().map(|sql| json!({ "stmt": { "sql": sql } })).collect();
    let answer =
        db.pipeline(None, json!([{ "type": "batch", "batch": { "steps": steps } }, { "type": "close" }]));
    let done = outcome(&answer["results"][0]).unwrap();
    assert!(done["step_errors"].as_array().unwrap().iter().all(Value::is_null), "{done}");
}

#[test]
fn a_cursor_sends_rows_as_they_are_read_and_waits_for_its_client() {
    let Some((_node, db, _dir)) = node_with(&["--sql-statement-timeout", "60s"]) else { return };
    db.execute("CREATE TABLE t(v)").unwrap();
    // 64 MB, four times what an answer may have.
    let numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 4000) ";
    let query = format!("{numbers} SELECT i, printf('%.*c', 16000, 'x') FROM n");
    assert_eq!(db.code(&query), "RESPONSE_TOO_LARGE");
    let batch = json!({ "batch": { "steps": [
        { "stmt": { "sql": query } },
        { "stmt": { "sql": "SELEC" } },
        { "stmt": { "sql": "SELECT 1" }, "condition": { "type": "ok", "step": 1 } },
        { "stmt": { "sql": "INSERT INTO t VALUES(1)" } },
    ] } });
    let reply = db.post("/v3/cursor", &batch);
    assert_eq!(reply.status, 200, "{}", reply.text());
    let lines: Vec<Value> = reply.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines[0]["baton"].is_string() && lines[0].get("base_url").is_some(), "{}", lines[0]);
    assert_eq!(lines[1]["type"], "step_begin");
    assert_eq!(lines.iter().filter(|line| line["type"] == "row").count(), 4000);
    let rest: Vec<_> = lines[4002..]
        .iter()
        .map(|line| (&line["type"], &line["step"], &line["affected_row_count"]))
        .collect();
    assert_eq!(
        rest,
        [
            (&json!("step_end"), &Value::Null, &json!(0)),
            (&json!("step_error"), &json!(1), &Value::Null),
            (&json!("step_begin"), &json!(3), &Value::Null),
            (&json!("step_end"), &Value::Null, &json!(1)),
        ]
    );
    assert_eq!(lines[4003]["error"]["code"], "SQL_INPUT_ERROR");
    let next = db.pipeline(lines[0]["baton"].as_str(), json!([{ "type": "close" }]));
    assert!(next["baton"].is_null());
    // A client that goes in the middle ends the query; its connection is free again.
    let body = json!({ "batch": { "steps": [{ "stmt": { "sql": query } }] } }).to_string();
    for _ in 0..40 {
        let mut stream = std::net::TcpStream::connect(db.address).unwrap();
        let head = format!(
            "POST {}/v3/cursor HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\n\r\n{body}",
            db.base,
            db.address,
            body.len()
        );
        std::io::Write::write_all(&mut stream, head.as_bytes()).unwrap();
        stream.read_exact(&mut [0; 4096]).unwrap();
    }
    assert_eq!(db.number("SELECT count(*) FROM t"), 1);
}

#[test]
fn an_endless_query_ends_by_its_time_or_with_its_client() {
    let Some((_node, db, _dir)) = node_with(&["--sql-statement-timeout", "1s", "--sql-connections", "2"])
    else {
        return;
    };
    db.execute("CREATE TABLE t(v)").unwrap();
    let endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";
    assert_eq!(db.code(endless), "STATEMENT_TIMEOUT");
    let writes = format!("INSERT INTO t SELECT * FROM ({endless})");
    let begun = db.pipeline(
        None,
        json!([
            { "type": "execute", "stmt": { "sql": "BEGIN" } },
            { "type": "execute", "stmt": { "sql": "INSERT INTO t VALUES(1)" } },
            { "type": "execute", "stmt": { "sql": writes } },
            { "type": "get_autocommit" },
            { "type": "close" },
        ]),
    );
    assert_eq!(outcome(&begun["results"][2]).unwrap_err()["code"], "STATEMENT_TIMEOUT");
    assert_eq!(begun["results"][3]["response"]["is_autocommit"], true, "{begun}");
    assert_eq!(db.number("SELECT count(*) FROM t"), 0);
}

#[test]
fn a_query_whose_client_has_gone_is_interrupted() {
    let Some((_node, db, _dir)) =
        node_with(&["--sql-statement-timeout", "5m", "--sql-connections", "1", "--sql-busy-timeout", "20s"])
    else {
        return;
    };
    let endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";
    let body =
        json!({ "requests": [{ "type": "execute", "stmt": { "sql": endless } }, { "type": "close" }] })
            .to_string();
    let mut stream = std::net::TcpStream::connect(db.address).unwrap();
    let head = format!(
        "POST {}/v3/pipeline HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\n\r\n{body}",
        db.base,
        db.address,
        body.len()
    );
    std::io::Write::write_all(&mut stream, head.as_bytes()).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!(stream.read(&mut [0; 1]).is_err(), "it does not end");
    drop(stream);
    let start = Instant::now();
    assert_eq!(db.rows("SELECT 'free'"), [["free"]]);
    assert!(
        start.elapsed() < Duration::from_secs(15),
        "the only connection was busy for {:?}",
        start.elapsed()
    );
}

#[test]
fn the_database_is_named_by_path_header_host_or_because_it_is_the_only_one() {
    let Some((node, db, _dir)) = node_with(&[]) else { return };
    let at = |base: &str| Hrana { base: base.to_owned(), ..db.clone() };
    let name = "SELECT file LIKE '%/app.db' FROM pragma_database_list WHERE name = 'main'";
    for database in [at(""), at("/dev/app.db"), at("/dev/app")] {
        assert_eq!(database.number(name), 1, "{}", database.base);
    }
    std::fs::create_dir(node.path("tenants")).unwrap();
    drop(sql::create(&node.path("tenants/7.db"), "wal", 4096));
    assert_eq!(Hrana::new(node.http, "tenants/7.db").number(name), 0);
    assert_eq!(at("").execute("SELECT 1").unwrap_err()["code"], "INVALID_REQUEST", "there are two");
    assert_eq!(at("").with_header("x-namespace", "app").number(name), 1);
    assert_eq!(at("/dev/none.db").execute("SELECT 1").unwrap_err()["code"], "DATABASE_NOT_FOUND");
    assert_eq!(at("/dev/none.db").execute("CREATE TABLE t(v)").unwrap_err()["code"], "DATABASE_NOT_FOUND");
    assert!(!node.path("none.db").exists());
    // The URL of a client whose base lacks its slash.
    assert_eq!(at("/dev").execute("SELECT 1").unwrap_err()["code"], "DATABASE_NOT_FOUND");
    for path in ["/v2", "/v3"] {
        assert_eq!(http::request(node.http, "GET", path, b"").unwrap().status, 200);
    }
    assert_eq!(http::request(node.http, "GET", "/v3-protobuf", b"").unwrap().status, 404);
    let host = "POST /v3/pipeline HTTP/1.1\r\nHost: app.localhost\r\nConnection: close\r\nContent-Length: 79\r\n\r\n";
    let body = r#"{"requests":[{"type":"execute","stmt":{"sql":"SELECT 'host'"}},{"type":"close"}]}"#;
    let head = host.replace("79", &body.len().to_string());
    let mut stream = std::net::TcpStream::connect(node.http).unwrap();
    std::io::Write::write_all(&mut stream, format!("{head}{body}").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"host\""), "{answer}");
}

#[test]
fn a_database_that_does_not_exist_is_made_where_that_is_wanted() {
    let Some((node, _db, _dir)) = node_with(&["--sql-create"]) else { return };
    let new = Hrana::new(node.http, "new.db");
    new.execute("CREATE TABLE t(v)").unwrap();
    assert_eq!(new.rows("PRAGMA journal_mode"), [["wal"]]);
    assert_eq!(sql::number(&sql::open(&node.path("new.db")), "SELECT count(*) FROM t"), 0);
}

#[test]
fn the_shell_writes_tables_csv_and_json_and_one_line_for_an_error() {
    let Some((node, db, _dir)) = node_with(&[]) else { return };
    let run = |sql: &str, format: &str| node.must_client(&["sql", "app.db", sql, "--format", format]);
    let made = run("CREATE TABLE t(a, b); INSERT INTO t VALUES(9223372036854775807, 'x,y'); -- ;", "table");
    assert_eq!(made, "");
    run("INSERT INTO t VALUES(NULL, x'00ff')", "table");
    assert_eq!(run("SELECT * FROM t", "csv"), "a,b\r\n9223372036854775807,\"x,y\"\r\n,x'00ff'\r\n");
    assert_eq!(run("SELECT a FROM t", "json"), "[{\"a\":9223372036854775807},{\"a\":null}]\n");
    assert_eq!(run(".tables", "csv"), "name\r\nt\r\n");
    assert!(run(".schema t", "table").contains("CREATE TABLE t(a, b)"));
    // A transaction goes on from statement to statement, and what is left open is rolled back.
    assert_eq!(run("BEGIN; DELETE FROM t; SELECT count(*) AS n FROM t; ROLLBACK", "csv"), "n\r\n0\r\n");
    run("BEGIN; DELETE FROM t", "table");
    assert_eq!(db.number("SELECT count(*) FROM t"), 2);
    for (sql, why) in
        [("SELEC", "syntax error"), (".nothing", ".help"), ("SELECT 1; SELECT * FROM none", "none")]
    {
        let output = node.client(&["sql", "app.db", sql]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), text.lines().count()), (Some(1), 1), "{text}");
        assert!(text.contains(why), "{text}");
    }
}
