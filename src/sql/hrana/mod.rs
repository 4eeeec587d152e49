//! Hrana's documents as JSON: what clients of libSQL send and expect. No I/O.
//!
//! Source: the Hrana 2 and Hrana 3 specifications of libsql (`HRANA_2_SPEC.md`, `HRANA_3_SPEC.md`).

mod request;
mod response;
mod value;

pub use request::{
    Batch, Condition, CursorRequest, PipelineRequest, SqlRef, Step, StepBatch, StepExecute, Stmt, StoredText,
    StreamRequest,
};
pub use response::{
    BatchResult, Column, CursorEntry, CursorHead, DescribeColumn, DescribeParam, DescribeResult, Failure,
    PipelineAnswer, RequestResult, StmtResult, StreamAnswer,
};
pub use value::Value;
