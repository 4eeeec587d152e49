//! Statements that depend on one another.

use super::session::Session;
use super::statement::{Budget, Scope, collect};
use crate::sql::hrana::{Batch, BatchResult, Condition, Failure};

/// How deep conditions may be in one another.
const DEPTH_MAX: usize = 64;

/// What has become of the steps before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    /// It was done.
    Ok,
    /// It failed.
    Error,
    /// It was not to be done.
    Skipped,
}

/// Whether the condition holds.
///
/// # Errors
/// Where it is about a step that comes later, or too deep.
pub(super) fn holds(
    condition: Option<&Condition>,
    done: &[Outcome],
    autocommit: bool,
) -> Result<bool, Failure> {
    condition.map_or(Ok(true), |condition| evaluate(condition, done, autocommit, 0))
}

fn evaluate(
    condition: &Condition,
    done: &[Outcome],
    autocommit: bool,
    depth: usize,
) -> Result<bool, Failure> {
    if depth > DEPTH_MAX {
        return Err(Failure::new("INVALID_REQUEST", "the condition of a step is too deep"));
    }
    let of = |step: usize| {
        let later = || {
            Failure::new("INVALID_REQUEST", format!("a condition is about step {step}, which is not done"))
        };
        done.get(step).copied().ok_or_else(later)
    };
    let inner = |condition: &Condition| evaluate(condition, done, autocommit, depth + 1);
    Ok(match condition {
        Condition::Ok { step } => of(*step)? == Outcome::Ok,
        Condition::Error { step } => of(*step)? == Outcome::Error,
        Condition::Not { cond } => !inner(cond)?,
        Condition::And { conds } => conds.iter().try_fold(true, |all, cond| Ok(all & inner(cond)?))?,
        Condition::Or { conds } => conds.iter().try_fold(false, |any, cond| Ok(any | inner(cond)?))?,
        Condition::IsAutocommit {} => autocommit,
    })
}

/// Executes a batch, and gives all of it at once.
///
/// # Errors
/// Where a condition means nothing; steps that fail are part of the result.
pub(super) fn run(
    session: &mut Session,
    scope: Scope<'_>,
    batch: &Batch,
    budget: &mut Budget,
) -> Result<BatchResult, Failure> {
    let (mut result, mut done) = (BatchResult::default(), Vec::with_capacity(batch.steps.len()));
    for step in &batch.steps {
        let (value, error) = match holds(step.condition.as_ref(), &done, session.is_autocommit())? {
            false => (None, None),
            true => match collect(session, scope, &step.stmt, budget) {
                Ok(value) => (Some(value), None),
                Err(error) => (None, Some(error)),
            },
        };
        done.push(match (&value, &error) {
            (Some(_), _) => Outcome::Ok,
            (None, Some(_)) => Outcome::Error,
            (None, None) => Outcome::Skipped,
        });
        result.step_results.push(value);
        result.step_errors.push(error);
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_about_steps_that_were_done_failed_or_skipped() {
        let done = [Outcome::Ok, Outcome::Error, Outcome::Skipped];
        for (text, expected) in [
            (r#"{"type":"ok","step":0}"#, true),
            (r#"{"type":"ok","step":2}"#, false),
            (r#"{"type":"error","step":1}"#, true),
            (r#"{"type":"error","step":2}"#, false),
            (r#"{"type":"not","cond":{"type":"ok","step":1}}"#, true),
            (r#"{"type":"and","conds":[]}"#, true),
            (r#"{"type":"or","conds":[]}"#, false),
            (r#"{"type":"or","conds":[{"type":"ok","step":1},{"type":"is_autocommit"}]}"#, true),
        ] {
            let condition: Condition = serde_json::from_str(text).unwrap();
            assert_eq!(holds(Some(&condition), &done, true), Ok(expected), "{text}");
        }
        let later: Condition = serde_json::from_str(r#"{"type":"ok","step":3}"#).unwrap();
        assert_eq!(holds(Some(&later), &done, true).unwrap_err().code, "INVALID_REQUEST");
        assert_eq!(holds(None, &done, true), Ok(true));
    }
}
