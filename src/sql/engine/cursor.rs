//! A batch whose rows are sent while they are read; a client that takes nothing holds them up.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use serde::Serialize;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::batch::{Outcome, holds};
use super::error::ABANDONED;
use super::session::Session;
use super::statement::{RowSink, Scope, execute};
use crate::sql::hrana::{Batch, Column, CursorEntry, CursorHead, Failure, Value};

/// What is sent at a time, in bytes.
const CHUNK_BYTES: usize = 16 << 10;

/// Where the lines of an answer go.
pub(super) struct Lines {
    sender: mpsc::Sender<Bytes>,
    runtime: Handle,
    waiting: BytesMut,
    /// How long the client may take nothing.
    patience: Duration,
    step: usize,
}

impl Lines {
    /// To this receiver.
    pub fn new(sender: mpsc::Sender<Bytes>, runtime: Handle, patience: Duration) -> Self {
        Self { sender, runtime, waiting: BytesMut::new(), patience, step: 0 }
    }

    /// The first line.
    ///
    /// # Errors
    /// Where nobody takes it.
    pub fn head(&mut self, baton: Option<String>) -> Result<(), Failure> {
        self.line(&CursorHead { baton, base_url: None })
    }

    fn line(&mut self, line: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_vec(line).map_err(|error| Failure::new("INTERNAL", error.to_string()))?;
        self.waiting.extend_from_slice(&text);
        self.waiting.extend_from_slice(b"\n");
        if self.waiting.len() >= CHUNK_BYTES { self.flush() } else { Ok(()) }
    }

    /// Sends what waits. Blocking.
    ///
    /// # Errors
    /// Where nobody takes it.
    pub fn flush(&mut self) -> Result<(), Failure> {
        let chunk = self.waiting.split().freeze();
        if chunk.is_empty() {
            return Ok(());
        }
        let sent = self.runtime.block_on(tokio::time::timeout(self.patience, self.sender.send(chunk)));
        match sent {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Failure::new(ABANDONED, "the client has gone")),
            Err(_) => Err(Failure::new(ABANDONED, "the client takes nothing")),
        }
    }
}

impl RowSink for Lines {
    fn begin(&mut self, cols: Vec<Column>) -> Result<(), Failure> {
        self.line(&CursorEntry::StepBegin { step: self.step, cols })
    }

    fn row(&mut self, row: Vec<Value>) -> Result<(), Failure> {
        self.line(&CursorEntry::Row { row })
    }
}

/// Executes a batch and sends its rows. Blocking.
///
/// # Errors
/// Where the client has gone, or a condition means nothing; steps that fail are told in the answer.
pub(super) fn run(
    session: &mut Session,
    scope: Scope<'_>,
    batch: &Batch,
    lines: &mut Lines,
) -> Result<(), Failure> {
    let mut done = Vec::with_capacity(batch.steps.len());
    for (number, step) in batch.steps.iter().enumerate() {
        if !holds(step.condition.as_ref(), &done, session.is_autocommit())? {
            done.push(Outcome::Skipped);
            continue;
        }
        lines.step = number;
        match execute(session, scope, &step.stmt, lines) {
            Ok(ended) => {
                let (affected_row_count, last_insert_rowid) = (ended.affected, ended.last_rowid);
                lines.line(&CursorEntry::StepEnd { affected_row_count, last_insert_rowid })?;
                done.push(Outcome::Ok);
            }
            Err(failure) if failure.code == ABANDONED => return Err(failure),
            Err(error) => {
                lines.line(&CursorEntry::StepError { step: number, error })?;
                done.push(Outcome::Error);
            }
        }
    }
    Ok(())
}

/// The last line of a cursor that cannot go on.
pub(super) fn end_with(lines: &mut Lines, error: Failure) {
    // Nobody to tell where the client has gone.
    let _ = lines.line(&CursorEntry::Error { error });
}
