//! The requests of a stream, in order.

use super::batch;
use super::session::Session;
use super::statement::{Budget, Scope, collect, describe, sequence};
use crate::sql::hrana::{Failure, RequestResult, StmtResult, StreamAnswer, StreamRequest};

/// Does all of them, also after one that fails; says whether the client has closed the stream.
pub(super) fn run(
    session: &mut Session,
    scope: Scope<'_>,
    requests: Vec<StreamRequest>,
) -> (Vec<RequestResult>, bool) {
    let mut budget = Budget::of(scope.options);
    let mut closed = false;
    let done = requests.into_iter().map(|request| {
        if closed {
            return Err(Failure::new("STREAM_CLOSED", "the stream was closed by a request before this one"));
        }
        closed |= matches!(request, StreamRequest::Close {});
        one(session, scope, request, &mut budget)
    });
    let results = done.map(|outcome| match outcome {
        Ok(response) => RequestResult::Ok { response },
        Err(error) => RequestResult::Error { error },
    });
    let results = results.collect();
    (results, closed)
}

fn one(
    session: &mut Session,
    scope: Scope<'_>,
    request: StreamRequest,
    budget: &mut Budget,
) -> Result<StreamAnswer, Failure> {
    // Compiling a statement may take time, too.
    session.connection.interrupt.arm(scope.options.statement_max);
    Ok(match request {
        StreamRequest::Execute { stmt } => {
            StreamAnswer::Execute { result: collect(session, scope, &stmt, budget)? }
        }
        StreamRequest::Batch { batch } => {
            StreamAnswer::Batch { result: batch::run(session, scope, &batch, budget)? }
        }
        StreamRequest::Sequence(sql) => {
            let text = session.text(&sql)?;
            sequence(session, scope, &text)?;
            StreamAnswer::Sequence {}
        }
        StreamRequest::Describe(sql) => {
            let text = session.text(&sql)?;
            StreamAnswer::Describe { result: describe(&session.connection.sqlite, &text)? }
        }
        StreamRequest::StoreSql(text) => {
            session.store(text)?;
            StreamAnswer::StoreSql {}
        }
        StreamRequest::CloseSql { sql_id } => {
            session.forget(sql_id);
            StreamAnswer::CloseSql {}
        }
        StreamRequest::GetAutocommit {} => {
            StreamAnswer::GetAutocommit { is_autocommit: session.is_autocommit() }
        }
        StreamRequest::Close {} => StreamAnswer::Close {},
    })
}

/// Tells all results at which transaction the database was afterwards.
pub(super) fn mark(results: &mut [RequestResult], txid: Option<u64>) {
    let one = |result: &mut StmtResult| result.replication_index = txid;
    for result in results {
        let RequestResult::Ok { response } = result else { continue };
        match response {
            StreamAnswer::Execute { result } => one(result),
            StreamAnswer::Batch { result } => {
                result.replication_index = txid;
                result.step_results.iter_mut().flatten().for_each(one);
            }
            _ => {}
        }
    }
}
