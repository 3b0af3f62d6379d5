//! Exit statuses, and what they are chosen by.
//!
//! | status | means |
//! |---|---|
//! | 0 | done; the answer is yes |
//! | 1 | the answer is no (absent, condition failed, degraded, rows differ), or it could not be done |
//! | 2 | the command line or the request itself is wrong; nothing was done |
//! | 3 | a write may or may not have happened |

use std::io;
use std::process::ExitCode;

use reelkv_client::{Error, ErrorKind};
use reelkv_migrate::MigrateError;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// Done.
    Fine = 0,
    /// The answer is no, or it could not be done.
    No = 1,
    /// Refused as given.
    BadInput = 2,
    /// Nobody knows whether it was done.
    Unknown = 3,
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> Self {
        ExitCode::from(status as u8)
    }
}

/// What a command returns.
pub(crate) type Outcome = Result<Status, Failure>;

/// Why a command ended early: its status and the line for standard error.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) status: Status,
    /// None when there is nothing to say: whoever read standard output has gone.
    pub(crate) message: Option<String>,
}

impl Failure {
    pub(crate) fn new(status: Status, message: impl Into<String>) -> Self {
        Self {
            status,
            message: Some(message.into()),
        }
    }

    /// It could not be done, or the answer is no.
    pub(crate) fn no(message: impl Into<String>) -> Self {
        Self::new(Status::No, message)
    }

    /// The command line is wrong.
    pub(crate) fn bad_input(message: impl Into<String>) -> Self {
        Self::new(Status::BadInput, message)
    }

    /// Standard output was closed, as `head` does when it has enough: no failure, but a reason to stop.
    pub(crate) fn closed() -> Self {
        Self {
            status: Status::Fine,
            message: None,
        }
    }

    /// Writing to standard output failed.
    pub(crate) fn stdout(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::closed(),
            _ => Self::no(format!("writing to standard output: {error}")),
        }
    }

    /// A file named on the command line could not be used.
    pub(crate) fn file(path: &std::path::Path, error: &io::Error) -> Self {
        Self::no(format!("{}: {error}", path.display()))
    }
}

/// The exit status of each kind of the client's errors.
fn status_of(kind: &ErrorKind) -> Status {
    match kind {
        ErrorKind::InvalidArgument { .. } | ErrorKind::UnknownKeyspace => Status::BadInput,
        ErrorKind::OutcomeUnknown => Status::Unknown,
        // Busy, Unavailable, ConditionFailed, Integrity, AlreadyExists, Internal, and kinds to come.
        _ => Status::No,
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let message = match error.kind() {
            ErrorKind::ConditionFailed { current_version: 0 } => {
                "the condition does not hold: the key is absent".to_owned()
            }
            ErrorKind::ConditionFailed { current_version } => {
                format!("the condition does not hold: the key has version {current_version}")
            }
            ErrorKind::OutcomeUnknown => format!("it may or may not have been done: {error}"),
            ErrorKind::Integrity { seen_at } => format!("damaged bytes, seen at {seen_at}: {error}"),
            _ => error.to_string(),
        };
        Self::new(status_of(error.kind()), message)
    }
}

impl From<MigrateError> for Failure {
    fn from(error: MigrateError) -> Self {
        // Whatever stopped an import, running it again finishes the job: no outcome is unknown.
        let status = match &error {
            MigrateError::InvalidOptions(_) => Status::BadInput,
            _ => Status::No,
        };
        Self::new(status, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use reelkv_client::v1;
    use reelkv_client::v1::error::Kind;

    use super::*;

    fn failure(kind: Kind) -> Failure {
        let error = v1::Error {
            message: "so it is".to_owned(),
            kind: Some(kind),
        };
        Error::from(error).into()
    }

    #[test]
    fn every_kind_of_error_has_its_exit_status_and_one_line() {
        let cases = [
            (Kind::Busy(v1::Busy::default()), 1, "so it is"),
            (Kind::Unavailable(v1::Unavailable::default()), 1, "so it is"),
            (Kind::NotLeader(v1::NotLeader::default()), 1, "so it is"),
            (
                Kind::InvalidArgument(v1::InvalidArgument::default()),
                2,
                "so it is",
            ),
            (
                Kind::UnknownKeyspace(v1::UnknownKeyspace::default()),
                2,
                "so it is",
            ),
            (
                Kind::ConditionFailed(v1::ConditionFailed { current_version: 7 }),
                1,
                "version 7",
            ),
            (
                Kind::ConditionFailed(v1::ConditionFailed { current_version: 0 }),
                1,
                "absent",
            ),
            (
                Kind::OutcomeUnknown(v1::OutcomeUnknown::default()),
                3,
                "may or may not",
            ),
            (
                Kind::Integrity(v1::Integrity {
                    r#where: "wal".to_owned(),
                }),
                1,
                "wal",
            ),
            (Kind::AlreadyExists(v1::AlreadyExists::default()), 1, "so it is"),
            (Kind::Internal(v1::Internal::default()), 1, "so it is"),
        ];
        for (kind, status, words) in cases {
            let failure = failure(kind.clone());
            assert_eq!(failure.status as u8, status, "{kind:?}");
            let message = failure.message.expect("it says something");
            assert!(message.contains(words), "{kind:?}: {message}");
            assert!(!message.contains('\n'), "{kind:?}: {message}");
        }
    }

    #[test]
    fn errors_of_a_migration_have_their_exit_status() {
        let bad = MigrateError::InvalidOptions("no".to_owned());
        assert_eq!(Failure::from(bad).status, Status::BadInput);
        let gone = MigrateError::Connection {
            server: "localhost:5432".to_owned(),
            reason: "refused".to_owned(),
        };
        let failure = Failure::from(gone);
        assert_eq!(failure.status, Status::No);
        assert!(failure.message.unwrap().contains("localhost:5432"));
    }

    #[test]
    fn a_closed_pipe_is_no_failure() {
        let closed = Failure::stdout(&io::ErrorKind::BrokenPipe.into());
        assert_eq!((closed.status, closed.message), (Status::Fine, None));
        assert_eq!(
            Failure::stdout(&io::ErrorKind::StorageFull.into()).status,
            Status::No
        );
    }
}
