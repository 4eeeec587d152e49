//! A client of SQL over HTTP that says exactly what a test wants.

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::http::{Reply, request_with};

/// A database on one node.
#[derive(Clone)]
pub struct Hrana {
    pub address: SocketAddr,
    /// What comes before `/v3/pipeline`.
    pub base: String,
    /// More header lines, each with its end.
    pub headers: String,
}

impl Hrana {
    /// The database `db` on the node whose API is at `address`.
    pub fn new(address: SocketAddr, db: &str) -> Self {
        Self { address, base: format!("/dev/{}", super::http::encode(db)), headers: String::new() }
    }

    /// The same with a token.
    pub fn with_token(&self, token: &str) -> Self {
        self.with_header("Authorization", &format!("Bearer {token}"))
    }

    /// The same with one more header.
    pub fn with_header(&self, name: &str, value: &str) -> Self {
        Self { headers: format!("{}{name}: {value}\r\n", self.headers), ..self.clone() }
    }

    /// Sends a document to a path below the base.
    pub fn post(&self, path: &str, document: &Value) -> Reply {
        let body = document.to_string();
        let path = format!("{}{path}", self.base);
        request_with(self.address, "POST", &path, &self.headers, body.as_bytes()).unwrap()
    }

    /// A pipeline; its answer must be one.
    pub fn pipeline(&self, baton: Option<&str>, requests: Value) -> Value {
        let reply = self.post("/v3/pipeline", &json!({ "baton": baton, "requests": requests }));
        assert_eq!(reply.status, 200, "{}", reply.text());
        parse(&reply)
    }

    /// One statement on a stream of its own: its result, or its error.
    pub fn execute(&self, sql: &str) -> Result<Value, Value> {
        self.execute_stmt(json!({ "sql": sql }))
    }

    /// The same with arguments.
    pub fn execute_with(&self, sql: &str, args: Value) -> Result<Value, Value> {
        self.execute_stmt(json!({ "sql": sql, "args": args }))
    }

    /// The same as the protocol writes it.
    pub fn execute_stmt(&self, stmt: Value) -> Result<Value, Value> {
        let requests = json!([{ "type": "execute", "stmt": stmt }, { "type": "close" }]);
        let reply = self.post("/v3/pipeline", &json!({ "requests": requests }));
        let answer = parse(&reply);
        if reply.status != 200 {
            return Err(answer);
        }
        assert!(answer["baton"].is_null(), "{answer}");
        outcome(&answer["results"][0])
    }

    /// All rows of a query, plain.
    pub fn rows(&self, sql: &str) -> Vec<Vec<Value>> {
        let result = self.execute(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
        rows(&result)
    }

    /// One number.
    pub fn number(&self, sql: &str) -> i64 {
        let rows = self.rows(sql);
        rows[0][0].as_str().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("{sql}: {rows:?}"))
    }

    /// The code of a statement that must fail.
    pub fn code(&self, sql: &str) -> String {
        match self.execute(sql) {
            Ok(result) => panic!("{sql} succeeds: {result}"),
            Err(error) => {
                error["code"].as_str().unwrap_or_else(|| panic!("{sql}: no code in {error}")).to_owned()
            }
        }
    }
}

/// The document of an answer.
pub fn parse(reply: &Reply) -> Value {
    serde_json::from_slice(&reply.body).unwrap_or_else(|error| panic!("{error}: {}", reply.text()))
}

/// The result or the error of one request of a pipeline.
pub fn outcome(result: &Value) -> Result<Value, Value> {
    match result["type"].as_str() {
        Some("ok") => Ok(result["response"]["result"].clone()),
        Some("error") => Err(result["error"].clone()),
        _ => panic!("{result}"),
    }
}

/// The values of a result, an integer as its text.
pub fn rows(result: &Value) -> Vec<Vec<Value>> {
    let plain = |value: &Value| match value["type"].as_str() {
        Some("null") => Value::Null,
        Some("blob") => value["base64"].clone(),
        _ => value["value"].clone(),
    };
    let all = result["rows"].as_array().unwrap_or_else(|| panic!("{result}"));
    all.iter().map(|row| row.as_array().unwrap().iter().map(plain).collect()).collect()
}
