//! What the gateway reads and changes of the documents that it passes on.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::{RawValue, to_raw_value};

use super::refusal::Refusal;
use crate::sql::engine::{CURSOR_PATH, PIPELINE_PATH};
use crate::sql::hrana::{
    Batch, CursorRequest, Failure, PipelineRequest, StepBatch, StepExecute, StoredText, StreamRequest,
};

/// Which of Hrana's requests it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// `/v2/pipeline`, `/v3/pipeline`.
    Pipeline,
    /// `/v3/cursor`.
    Cursor,
    /// `/v1/execute`.
    Execute,
    /// `/v1/batch`.
    Batch,
}

impl Kind {
    /// Where the engine does it.
    pub fn engine_path(self) -> &'static str {
        if self == Kind::Cursor { CURSOR_PATH } else { PIPELINE_PATH }
    }

    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Pipeline => "pipeline",
            Kind::Cursor => "cursor",
            Kind::Execute => "execute",
            Kind::Batch => "batch",
        }
    }

    /// Where another node does it.
    pub fn node_path(self) -> &'static str {
        if self == Kind::Cursor { "/v3/cursor" } else { "/v3/pipeline" }
    }
}

/// A request, read as far as the gateway has to.
#[derive(Debug)]
pub(super) struct Document {
    /// The stream that it goes on with.
    pub baton: Option<String>,
    /// The newest transaction that its client has seen, as it says.
    pub seen: Option<u64>,
    /// What is passed on: a pipeline, or a cursor's batch.
    pub body: Bytes,
}

impl Document {
    /// Reads a request.
    ///
    /// # Errors
    /// Where it is none.
    pub fn read(kind: Kind, body: Bytes) -> Result<Self, Refusal> {
        let bad = |error: serde_json::Error| Refusal::invalid(format!("the request's body: {error}"));
        match kind {
            Kind::Pipeline => {
                let PipelineRequest { baton, requests } = serde_json::from_slice(&body).map_err(bad)?;
                let seen = requests.iter().filter_map(StreamRequest::replication_index).max();
                Ok(Self { baton, seen, body })
            }
            Kind::Cursor => {
                let CursorRequest { baton, batch } = serde_json::from_slice(&body).map_err(bad)?;
                Ok(Self { baton, seen: batch.newest(), body })
            }
            Kind::Execute => {
                let StepExecute { stmt } = serde_json::from_slice(&body).map_err(bad)?;
                let body = alone(&body, "execute", "stmt").map_err(bad)?;
                Ok(Self { baton: None, seen: stmt.sql.replication_index, body })
            }
            Kind::Batch => {
                let StepBatch { batch } = serde_json::from_slice::<StepBatch>(&body).map_err(bad)?;
                let seen = Batch::newest(&batch);
                let body = alone(&body, "batch", "batch").map_err(bad)?;
                Ok(Self { baton: None, seen, body })
            }
        }
    }

    /// The same on another stream.
    ///
    /// # Errors
    /// Where it is no object, which cannot be by now.
    pub fn with_baton(&self, baton: Option<&str>) -> Result<Bytes, Refusal> {
        let bad = |error: serde_json::Error| Refusal::invalid(format!("the request's body: {error}"));
        let mut fields: BTreeMap<String, Box<RawValue>> = serde_json::from_slice(&self.body).map_err(bad)?;
        fields.insert("baton".to_owned(), to_raw_value(&baton).map_err(bad)?);
        serde_json::to_vec(&fields).map(Bytes::from).map_err(bad)
    }
}

/// A request of version 1 as a pipeline that closes its stream.
fn alone(body: &Bytes, kind: &str, field: &str) -> serde_json::Result<Bytes> {
    let fields: BTreeMap<String, Box<RawValue>> = serde_json::from_slice(body)?;
    let Some(content) = fields.get(field) else { return Ok(body.clone()) };
    let text = format!(
        r#"{{"baton":null,"requests":[{{"type":"{kind}","{field}":{}}},{{"type":"close"}}]}}"#,
        content.get()
    );
    Ok(Bytes::from(text))
}

/// A pipeline that stores texts on a new stream.
///
/// # Errors
/// Where they cannot be written as JSON, which cannot be.
pub(super) fn storing(texts: &[StoredText]) -> Result<Bytes, Refusal> {
    let requests: Vec<_> = texts
        .iter()
        .map(|text| serde_json::json!({ "type": "store_sql", "sql_id": text.sql_id, "sql": text.sql }))
        .collect();
    let document = serde_json::json!({ "baton": null, "requests": requests });
    serde_json::to_vec(&document).map(Bytes::from).map_err(|error| Refusal::invalid(error.to_string()))
}

/// The baton of a pipeline's answer.
pub(super) fn baton_of(answer: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Answer {
        baton: Option<String>,
    }
    serde_json::from_slice::<Answer>(answer).ok()?.baton
}

/// The answer of version 1: `{"result": ...}`, or the error of the only request.
///
/// # Errors
/// The request's own, or that the answer is none.
pub(super) fn version_1(answer: &[u8]) -> Result<Bytes, Failure> {
    #[derive(Deserialize)]
    struct Answer {
        results: Vec<Outcome>,
    }
    #[derive(Deserialize)]
    struct Outcome {
        #[serde(default)]
        response: Option<Response>,
        #[serde(default)]
        error: Option<Failure>,
    }
    #[derive(Deserialize)]
    struct Response {
        #[serde(default)]
        result: Option<Box<RawValue>>,
    }
    let strange = |why: &str| Failure::new("INTERNAL", format!("the answer of a pipeline: {why}"));
    let answer: Answer = serde_json::from_slice(answer).map_err(|error| strange(&error.to_string()))?;
    let Some(first) = answer.results.into_iter().next() else { return Err(strange("it is empty")) };
    if let Some(error) = first.error {
        return Err(error);
    }
    let result = first.response.and_then(|response| response.result).ok_or_else(|| strange("no result"))?;
    Ok(Bytes::from(format!(r#"{{"result":{}}}"#, result.get())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_1_is_a_pipeline_of_one_request() {
        let body = Bytes::from_static(br#"{"stmt":{"sql":"SELECT 1","replication_index":"4"}}"#);
        let document = Document::read(Kind::Execute, body).unwrap();
        assert_eq!(document.seen, Some(4));
        let pipeline: PipelineRequest = serde_json::from_slice(&document.body).unwrap();
        assert_eq!(pipeline.requests.len(), 2);
        let answer =
            br#"{"baton":null,"results":[{"type":"ok","response":{"type":"execute","result":{"a":1}}}]}"#;
        assert_eq!(version_1(answer).unwrap(), r#"{"result":{"a":1}}"#);
        let answer = br#"{"results":[{"type":"error","error":{"message":"m","code":"C"}}]}"#;
        assert_eq!(version_1(answer).unwrap_err(), Failure::new("C", "m"));
        assert_eq!(version_1(b"{}").unwrap_err().code, "INTERNAL");
    }

    #[test]
    fn a_request_moves_to_another_stream_and_keeps_the_rest() {
        let body = Bytes::from_static(br#"{"requests":[{"type":"close"}],"baton":"old","later":1e2}"#);
        let document = Document::read(Kind::Pipeline, body).unwrap();
        assert_eq!(document.baton.as_deref(), Some("old"));
        let text = String::from_utf8(document.with_baton(None).unwrap().to_vec()).unwrap();
        assert_eq!(text, r#"{"baton":null,"later":1e2,"requests":[{"type":"close"}]}"#);
        let stored = storing(&[StoredText { sql_id: 1, sql: "x".into() }]).unwrap();
        assert!(serde_json::from_slice::<PipelineRequest>(&stored).is_ok());
    }
}
