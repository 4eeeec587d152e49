use serde::{Deserialize, Serialize, Serializer};

use super::Value;

/// What goes wrong, as clients read it. `code` is always there: a client of Python's ends in the middle without it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Failure {
    /// For people.
    pub message: String,
    /// For programs.
    pub code: String,
}

impl Failure {
    /// A failure of this kind.
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self { message: message.into(), code: code.to_owned() }
    }
}

/// The answer of `/v2/pipeline` and `/v3/pipeline`.
#[derive(Debug, Serialize)]
pub struct PipelineAnswer {
    /// How the stream goes on; `None` where it is closed.
    pub baton: Option<String>,
    /// Always none: any node takes the next request to where the stream is.
    pub base_url: Option<String>,
    /// One for each request.
    pub results: Vec<RequestResult>,
}

/// The outcome of one request.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum RequestResult {
    /// It succeeded.
    Ok {
        /// Its answer.
        response: StreamAnswer,
    },
    /// It failed.
    Error {
        /// Why.
        error: Failure,
    },
}

/// What a request is answered with.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum StreamAnswer {
    /// Of a statement.
    Execute {
        /// Its outcome.
        result: StmtResult,
    },
    /// Of a batch.
    Batch {
        /// Its outcome.
        result: BatchResult,
    },
    /// Of a sequence.
    Sequence {},
    /// Of a description.
    Describe {
        /// It.
        result: DescribeResult,
    },
    /// Of a stored text.
    StoreSql {},
    /// Of a forgotten one.
    CloseSql {},
    /// Whether no transaction is open.
    GetAutocommit {
        /// Whether.
        is_autocommit: bool,
    },
    /// The stream is closed.
    Close {},
}

/// A column of a result.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Column {
    /// Its name.
    pub name: Option<String>,
    /// Its type as it was declared.
    pub decltype: Option<String>,
}

/// The outcome of a statement.
#[derive(Debug, Default, PartialEq, Serialize)]
pub struct StmtResult {
    /// Columns.
    pub cols: Vec<Column>,
    /// Rows.
    pub rows: Vec<Vec<Value>>,
    /// Rows inserted, updated or deleted.
    pub affected_row_count: u64,
    /// Of the last row inserted on this stream.
    #[serde(serialize_with = "text")]
    pub last_insert_rowid: Option<i64>,
    /// The transaction that this node's database was at afterwards.
    #[serde(serialize_with = "text")]
    pub replication_index: Option<u64>,
    /// How long it took.
    pub query_duration_ms: f64,
}

/// The outcome of a batch; what was not done has neither result nor error.
#[derive(Debug, Default, Serialize)]
pub struct BatchResult {
    /// Of those that succeeded.
    pub step_results: Vec<Option<StmtResult>>,
    /// Of those that failed.
    pub step_errors: Vec<Option<Failure>>,
    /// The transaction that this node's database was at afterwards.
    #[serde(serialize_with = "text")]
    pub replication_index: Option<u64>,
}

/// What a statement is.
#[derive(Debug, Serialize)]
pub struct DescribeResult {
    /// Its parameters.
    pub params: Vec<DescribeParam>,
    /// Its columns.
    pub cols: Vec<DescribeColumn>,
    /// Whether it is an EXPLAIN.
    pub is_explain: bool,
    /// Whether it changes nothing.
    pub is_readonly: bool,
}

/// A parameter.
#[derive(Debug, Serialize)]
pub struct DescribeParam {
    /// Its name with its prefix, where it has one.
    pub name: Option<String>,
}

/// A column of a statement that is described.
#[derive(Debug, Serialize)]
pub struct DescribeColumn {
    /// Its name.
    pub name: String,
    /// Its type as it was declared.
    pub decltype: Option<String>,
}

/// The first line of a cursor's answer.
#[derive(Debug, Serialize)]
pub struct CursorHead {
    /// How the stream goes on.
    pub baton: Option<String>,
    /// Always none.
    pub base_url: Option<String>,
}

/// Each further line.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum CursorEntry {
    /// A step begins.
    StepBegin {
        /// Its number.
        step: usize,
        /// Columns.
        cols: Vec<Column>,
    },
    /// It has ended.
    StepEnd {
        /// Rows inserted, updated or deleted.
        affected_row_count: u64,
        /// Of the last row inserted on this stream.
        #[serde(serialize_with = "text")]
        last_insert_rowid: Option<i64>,
    },
    /// It failed.
    StepError {
        /// Its number.
        step: usize,
        /// Why.
        error: Failure,
    },
    /// A row.
    Row {
        /// Its values.
        row: Vec<Value>,
    },
    /// The transaction that this node's database was at afterwards.
    ReplicationIndex {
        /// Its number.
        #[serde(serialize_with = "text")]
        replication_index: Option<u64>,
    },
    /// The cursor ends here, because of this.
    Error {
        /// Why.
        error: Failure,
    },
}

/// JavaScript has 53 bits.
fn text<N: ToString, S: Serializer>(number: &Option<N>, serializer: S) -> Result<S::Ok, S::Error> {
    match number {
        Some(number) => serializer.serialize_some(&number.to_string()),
        None => serializer.serialize_none(),
    }
}
