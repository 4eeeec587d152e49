use std::error::Error;

use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

use crate::stream::StreamError;
use crate::types::LogIndex;

/// The trailer that names the kind of an error, for programs.
const KIND: &str = "skein-error";

/// The gRPC status for an error of the stream.
///
/// | error | code | trailers |
/// |---|---|---|
/// | purged | OUT_OF_RANGE | `skein-error: purged`, `skein-from`, `skein-first` |
/// | foreign cluster | FAILED_PRECONDITION | `skein-error: foreign-cluster`, `skein-ours`, `skein-theirs` |
/// | protocol | FAILED_PRECONDITION | `skein-error: protocol`, `skein-ours`, `skein-theirs` |
/// | not found | NOT_FOUND | |
/// | denied | UNAUTHENTICATED | |
/// | invalid | INVALID_ARGUMENT | |
/// | unavailable, shutting down | UNAVAILABLE | |
/// | store, system call | INTERNAL | |
///
/// `ours` and `theirs` are seen from the sender of the status.
pub fn to_status(error: &StreamError) -> Status {
    let text = error.to_string();
    let (code, kind, details) = match error {
        StreamError::Purged { from, first } => (
            Code::OutOfRange,
            "purged",
            vec![("skein-from", from.to_string()), ("skein-first", first.to_string())],
        ),
        StreamError::ForeignCluster { ours, theirs } => (
            Code::FailedPrecondition,
            "foreign-cluster",
            vec![("skein-ours", ours.clone()), ("skein-theirs", theirs.clone())],
        ),
        StreamError::Protocol { ours, theirs } => (
            Code::FailedPrecondition,
            "protocol",
            vec![("skein-ours", ours.to_string()), ("skein-theirs", theirs.to_string())],
        ),
        StreamError::NotFound(what) => {
            let mut status = Status::new(Code::NotFound, what.clone());
            status.metadata_mut().insert(KIND, MetadataValue::from_static("not-found"));
            return status;
        }
        StreamError::Denied(what) => return Status::new(Code::Unauthenticated, what.clone()),
        StreamError::Invalid(what) => return Status::new(Code::InvalidArgument, what.clone()),
        StreamError::Unavailable(_) | StreamError::ShuttingDown => {
            return Status::new(Code::Unavailable, text);
        }
        StreamError::Store(_) | StreamError::Io { .. } => return Status::new(Code::Internal, text),
    };
    let mut status = Status::new(code, text);
    status.metadata_mut().insert(KIND, MetadataValue::from_static(kind));
    for (key, value) in details {
        if let Ok(value) = MetadataValue::try_from(value) {
            status.metadata_mut().insert(key, value);
        }
    }
    status
}

/// What an operator can do something about: the innermost cause ("Connection refused").
pub(super) fn innermost(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

/// The error of the stream that a peer's status stands for.
pub fn from_status(status: &Status) -> StreamError {
    let detail = |key| status.metadata().get(key).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let index = |key| LogIndex::new(detail(key).parse().unwrap_or_default());
    let message = status.source().map_or_else(|| status.message().to_owned(), innermost);
    let text: String = message.chars().take(500).collect();
    match (status.code(), detail(KIND)) {
        (Code::OutOfRange, "purged") => {
            StreamError::Purged { from: index("skein-from"), first: index("skein-first") }
        }
        // What is "ours" to the peer is "theirs" to us.
        (Code::FailedPrecondition, "foreign-cluster") => StreamError::ForeignCluster {
            ours: detail("skein-theirs").to_owned(),
            theirs: detail("skein-ours").to_owned(),
        },
        (Code::FailedPrecondition, "protocol") => StreamError::Protocol {
            ours: detail("skein-theirs").parse().unwrap_or_default(),
            theirs: detail("skein-ours").parse().unwrap_or_default(),
        },
        (Code::NotFound, "not-found") => StreamError::NotFound(text),
        (Code::Unauthenticated, _) => StreamError::Denied(text),
        (Code::InvalidArgument | Code::OutOfRange, _) => StreamError::Invalid(text),
        (code, _) => StreamError::Unavailable(format!("peer: {text} ({code})")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_a_follower_reacts_to_survive_the_wire() {
        let back = |error: StreamError| from_status(&to_status(&error));
        let (from, first) = (LogIndex::new(3), LogIndex::new(9));
        assert!(matches!(
            back(StreamError::Purged { from, first }),
            StreamError::Purged { from: f, first: g } if (f, g) == (from, first)
        ));
        assert!(matches!(
            back(StreamError::ForeignCluster { ours: "a".into(), theirs: "b".into() }),
            StreamError::ForeignCluster { ours, theirs } if ours == "b" && theirs == "a"
        ));
        assert!(matches!(
            back(StreamError::Protocol { ours: 1, theirs: 2 }),
            StreamError::Protocol { ours: 2, theirs: 1 }
        ));
        assert!(
            matches!(back(StreamError::NotFound("x".into())), StreamError::NotFound(what) if what == "x")
        );
        assert!(matches!(back(StreamError::ShuttingDown), StreamError::Unavailable(_)));
    }

    #[test]
    fn a_service_that_is_not_there_is_not_mistaken_for_a_missing_database() {
        assert!(matches!(from_status(&Status::not_found("no such path")), StreamError::Unavailable(_)));
    }
}
