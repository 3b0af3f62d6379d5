//! What went wrong, sorted by what the caller should do next.

use std::time::Duration;

use prost::Message;
use reelkv_proto::v1;
use reelkv_proto::v1::error::Kind;

/// A result of this library.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a call did not do what was asked. `Display` is one line for a person.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    kind: ErrorKind,
    message: String,
}

/// What the caller should do about an [`Error`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Over a bound for now; nothing was done. Call again after this long.
    Busy {
        /// How long to wait before calling again.
        retry_after: Duration,
    },
    /// No node answered, or no majority of the shard; nothing was done. Call again later.
    Unavailable,
    /// The request itself is wrong; fix it.
    InvalidArgument {
        /// The field or the limit at fault, e.g. `key`, `value`, `batch`.
        field: String,
    },
    /// There is no keyspace of that name; create it or fix the name.
    UnknownKeyspace,
    /// The condition of a write did not hold; nothing was written. Read and decide anew.
    ConditionFailed {
        /// The version the key has now; 0 when it is absent.
        current_version: u64,
    },
    /// The write may or may not have happened. Read to find out.
    OutcomeUnknown,
    /// Bytes did not match their checksum; nothing wrong was returned or written.
    Integrity {
        /// Where it was seen: `client`, `request`, `frame`, `wal`, `tree`, `bulk`.
        seen_at: String,
    },
    /// The keyspace or cluster to be made exists already.
    AlreadyExists,
    /// A fault of the server's or of this library; its log has more.
    Internal,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        let message = message.into().replace(['\n', '\r'], " ");
        Self { kind, message }
    }

    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unavailable, message)
    }

    pub(crate) fn outcome_unknown(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::OutcomeUnknown, message)
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    pub(crate) fn invalid(field: &str, message: impl Into<String>) -> Self {
        let field = field.to_owned();
        Self::new(ErrorKind::InvalidArgument { field }, message)
    }

    /// What the caller should do next.
    pub fn kind(&self) -> &ErrorKind {
        &self.kind
    }

    /// Whether the same call may be made again later and may then succeed: nothing was done this time.
    pub fn is_retryable(&self) -> bool {
        matches!(self.kind, ErrorKind::Busy { .. } | ErrorKind::Unavailable)
    }
}

impl From<v1::Error> for Error {
    fn from(error: v1::Error) -> Self {
        let kind = match error.kind {
            Some(Kind::Busy(busy)) => ErrorKind::Busy {
                retry_after: Duration::from_millis(busy.retry_after_ms.into()),
            },
            Some(Kind::OutcomeUnknown(_) | Kind::TokenExpired(_)) => ErrorKind::OutcomeUnknown,
            Some(Kind::Integrity(integrity)) => ErrorKind::Integrity {
                seen_at: integrity.r#where,
            },
            Some(Kind::InvalidArgument(invalid)) => ErrorKind::InvalidArgument { field: invalid.field },
            Some(Kind::ConditionFailed(failed)) => ErrorKind::ConditionFailed {
                current_version: failed.current_version,
            },
            Some(Kind::UnknownKeyspace(_)) => ErrorKind::UnknownKeyspace,
            Some(
                Kind::Unavailable(_) | Kind::NotLeader(_) | Kind::EpochNotMatch(_) | Kind::KeyNotInShard(_),
            ) => ErrorKind::Unavailable,
            Some(Kind::AlreadyExists(_)) => ErrorKind::AlreadyExists,
            Some(Kind::Internal(_)) | None => ErrorKind::Internal,
        };
        Self::new(kind, error.message)
    }
}

/// The error a unary call carries in its status; `None` when the status is the transport's own.
pub(crate) fn error_in_status(status: &tonic::Status) -> Option<v1::Error> {
    if status.details().is_empty() {
        return None;
    }
    v1::Error::decode(status.details())
        .ok()
        .filter(|error| error.kind.is_some())
}
