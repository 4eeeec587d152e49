use serde::{Deserialize, Deserializer, Serialize};

use super::Value;

/// A `Txid` as Hrana's clients write it: decimal, as a text or a number; `None` where it means nothing.
fn index<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Given {
        Text(String),
        Number(u64),
    }
    Ok(match Option::<Given>::deserialize(deserializer)? {
        None => None,
        Some(Given::Number(number)) => Some(number),
        Some(Given::Text(text)) => Some(text.parse().map_err(|_| {
            serde::de::Error::custom(format!("replication_index {text:?} is no number of 64 bits"))
        })?),
    })
}

/// The body of `/v2/pipeline` and `/v3/pipeline`.
#[derive(Debug, Deserialize)]
pub struct PipelineRequest {
    /// The stream to go on with; `None`: a new one.
    #[serde(default)]
    pub baton: Option<String>,
    /// What to do on it, in order; an error of one keeps none of the next from being done.
    pub requests: Vec<StreamRequest>,
}

/// The body of `/v3/cursor`.
#[derive(Debug, Deserialize)]
pub struct CursorRequest {
    /// The stream to go on with; `None`: a new one.
    #[serde(default)]
    pub baton: Option<String>,
    /// What to do.
    pub batch: Batch,
}

/// The body of `/v1/execute`.
#[derive(Debug, Deserialize)]
pub struct StepExecute {
    /// What to do, on a stream of its own.
    pub stmt: Stmt,
}

/// The body of `/v1/batch`.
#[derive(Debug, Deserialize)]
pub struct StepBatch {
    /// What to do, on a stream of its own.
    pub batch: Batch,
}

/// One request of a stream.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum StreamRequest {
    /// Executes one statement.
    Execute {
        /// The statement.
        stmt: Stmt,
    },
    /// Executes statements, each if its condition holds.
    Batch {
        /// The statements.
        batch: Batch,
    },
    /// Executes all statements of a text, without parameters, until one fails.
    Sequence(SqlRef),
    /// Tells what a statement is, without executing it.
    Describe(SqlRef),
    /// Keeps a text under a number.
    StoreSql(StoredText),
    /// Forgets such a text.
    CloseSql {
        /// Its number.
        sql_id: i32,
    },
    /// Asks whether no transaction is open.
    GetAutocommit {},
    /// Ends the stream.
    Close {},
}

/// SQL as a text, or as the number of one that was stored.
#[derive(Debug, Default, Clone, Deserialize)]
pub struct SqlRef {
    /// The text.
    #[serde(default)]
    pub sql: Option<String>,
    /// Its number.
    #[serde(default)]
    pub sql_id: Option<i32>,
    /// Not before this node has the transaction.
    #[serde(default, deserialize_with = "index")]
    pub replication_index: Option<u64>,
}

/// A text kept under a number.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StoredText {
    /// The number.
    pub sql_id: i32,
    /// The text.
    pub sql: String,
}

/// A statement with its arguments.
#[derive(Debug, Clone, Deserialize)]
pub struct Stmt {
    /// The text, or its number.
    #[serde(flatten)]
    pub sql: SqlRef,
    /// Values of `?1`, `?2`, ...
    #[serde(default)]
    pub args: Vec<Value>,
    /// Values of `:name`, `@name`, `$name`.
    #[serde(default)]
    pub named_args: Vec<NamedArg>,
    /// Whether rows are wanted.
    #[serde(default)]
    pub want_rows: Option<bool>,
}

/// The value of a named parameter.
#[derive(Debug, Clone, Deserialize)]
pub struct NamedArg {
    /// Its name, with or without `:`, `@`, `$`.
    pub name: String,
    /// Its value.
    pub value: Value,
}

/// Statements, each with its condition.
#[derive(Debug, Deserialize)]
pub struct Batch {
    /// In order.
    pub steps: Vec<Step>,
    /// Not before this node has the transaction.
    #[serde(default, deserialize_with = "index")]
    pub replication_index: Option<u64>,
}

/// One of them.
#[derive(Debug, Deserialize)]
pub struct Step {
    /// Only if.
    #[serde(default)]
    pub condition: Option<Condition>,
    /// What to do.
    pub stmt: Stmt,
}

/// When a step is done.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Condition {
    /// The step was done and succeeded.
    Ok {
        /// Its number.
        step: usize,
    },
    /// The step was done and failed.
    Error {
        /// Its number.
        step: usize,
    },
    /// The opposite.
    Not {
        /// Of this.
        cond: Box<Condition>,
    },
    /// All of them.
    And {
        /// These.
        conds: Vec<Condition>,
    },
    /// Any of them.
    Or {
        /// These.
        conds: Vec<Condition>,
    },
    /// No transaction is open.
    IsAutocommit {},
}

impl StreamRequest {
    /// The newest transaction that a client has seen, by what it says in this request.
    pub fn replication_index(&self) -> Option<u64> {
        match self {
            StreamRequest::Execute { stmt } => stmt.sql.replication_index,
            StreamRequest::Batch { batch } => batch.newest(),
            StreamRequest::Sequence(sql) | StreamRequest::Describe(sql) => sql.replication_index,
            StreamRequest::StoreSql(_)
            | StreamRequest::CloseSql { .. }
            | StreamRequest::GetAutocommit {}
            | StreamRequest::Close {} => None,
        }
    }
}

impl Batch {
    /// The newest transaction that a client has seen, by what it says in this batch.
    pub fn newest(&self) -> Option<u64> {
        let of_steps = self.steps.iter().filter_map(|step| step.stmt.sql.replication_index);
        of_steps.chain(self.replication_index).max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn explicit_nulls_and_unknown_fields_are_as_if_they_were_not_there() {
        let text = r#"{"baton":null,"requests":[
            {"type":"execute","stmt":{"sql":"SELECT 1","sql_id":null,"replication_index":null,"want_rows":null,"new":1}},
            {"type":"batch","batch":{"steps":[{"condition":null,"stmt":{"sql_id":3,"replication_index":"7"}},
              {"condition":{"type":"not","cond":{"type":"ok","step":0}},"stmt":{"sql":"x","replication_index":9}}]}},
            {"type":"get_autocommit"},{"type":"close"}]}"#;
        let request: PipelineRequest = serde_json::from_str(text).unwrap();
        assert_eq!(request.requests.len(), 4);
        assert_eq!(request.requests[0].replication_index(), None);
        assert_eq!(request.requests[1].replication_index(), Some(9));
    }

    #[test]
    fn a_request_that_does_not_exist_is_named() {
        let error =
            serde_json::from_str::<PipelineRequest>(r#"{"requests":[{"type":"explode"}]}"#).unwrap_err();
        assert!(error.to_string().contains("explode"), "{error}");
    }
}
