//! The API that the shell speaks.

use anyhow::bail;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::http::{Client, escape_name};
use crate::types::DbName;

/// What a statement gives.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Table {
    /// Columns.
    pub cols: Vec<Column>,
    /// Rows, with their values as Hrana writes them.
    pub rows: Vec<Vec<Value>>,
    /// Rows inserted, updated or deleted.
    #[serde(default)]
    pub affected_row_count: u64,
    /// How long it took on the node.
    #[serde(default)]
    pub query_duration_ms: f64,
}

/// A column.
#[derive(Debug, Deserialize)]
pub(super) struct Column {
    /// Its name.
    pub name: Option<String>,
}

#[derive(Deserialize)]
struct Answer {
    baton: Option<String>,
    results: Vec<Outcome>,
}

#[derive(Deserialize)]
struct Outcome {
    response: Option<Response>,
    error: Option<Failure>,
}

#[derive(Deserialize)]
struct Response {
    result: Option<Table>,
    is_autocommit: Option<bool>,
}

#[derive(Deserialize)]
struct Failure {
    message: String,
}

/// A database on a node.
pub(super) struct Remote {
    client: Client,
    path: String,
    /// Of the stream on which a transaction is open.
    baton: Option<String>,
}

impl Remote {
    /// On the node of `client`.
    pub(super) fn new(client: Client, db: &DbName) -> Self {
        Self { client, path: format!("/dev/{}/v3/pipeline", escape_name(db.as_str())), baton: None }
    }

    /// Whether a transaction is open.
    pub(super) fn in_transaction(&self) -> bool {
        self.baton.is_some()
    }

    /// Executes one statement; a transaction that it begins goes on with the next one.
    ///
    /// # Errors
    /// What the node says.
    pub(super) async fn execute(&mut self, sql: &str) -> anyhow::Result<Table> {
        let requests = json!([{ "type": "execute", "stmt": { "sql": sql } }, { "type": "get_autocommit" }]);
        let request = json!({ "baton": self.baton.take(), "requests": requests });
        let answer: Answer = self.client.ask(&self.path, &request).await?;
        let mut results = answer.results.into_iter();
        let (first, second) = (results.next(), results.next());
        let autocommit = second.and_then(|outcome| outcome.response?.is_autocommit).unwrap_or(true);
        match answer.baton {
            Some(baton) if !autocommit => self.baton = Some(baton),
            Some(baton) => self.end(baton).await?,
            None => {}
        }
        match first {
            Some(Outcome { error: Some(failure), .. }) => bail!("{}", failure.message),
            Some(Outcome { response: Some(Response { result: Some(table), .. }), .. }) => Ok(table),
            _ => bail!("{} does not answer like a skein node: a result is missing", self.client.url()),
        }
    }

    /// Ends the stream; a transaction that is open on it is rolled back.
    ///
    /// # Errors
    /// What the node says.
    pub(super) async fn close(&mut self) -> anyhow::Result<()> {
        match self.baton.take() {
            Some(baton) => self.end(baton).await,
            None => Ok(()),
        }
    }

    async fn end(&self, baton: String) -> anyhow::Result<()> {
        let request = json!({ "baton": baton, "requests": [{ "type": "close" }] });
        let _answer: Answer = self.client.ask(&self.path, &request).await?;
        Ok(())
    }
}
