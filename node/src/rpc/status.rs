//! The one place where an error becomes a gRPC status.
//!
//! The status code is for callers that know only gRPC; our own clients read the whole error from
//! the status's binary details.

use prost::Message;
use reelkv_proto::v1;
use reelkv_proto::v1::error::Kind;
use tonic::{Code, Status};

/// Details travel in a header; HTTP/2 peers commonly accept 16 KiB of all headers together.
const DETAILS_BYTES_MAX: usize = 4 << 10;

/// The status that carries `error`.
pub fn to_status(error: v1::Error) -> Status {
    let code = code(error.kind.as_ref());
    let message = error.message.clone();
    let mut details = error.encode_to_vec();
    if details.len() > DETAILS_BYTES_MAX {
        details = without_list(error).encode_to_vec();
    }
    Status::with_details(code, message, details.into())
}

/// The same error without the descriptors it named; the caller asks for the map anyway.
fn without_list(error: v1::Error) -> v1::Error {
    let kind = match error.kind {
        Some(Kind::EpochNotMatch(_)) => Some(Kind::EpochNotMatch(v1::EpochNotMatch::default())),
        Some(Kind::KeyNotInShard(key)) => Some(Kind::KeyNotInShard(v1::KeyNotInShard {
            shard_id: key.shard_id,
            ..Default::default()
        })),
        kind => kind,
    };
    let message = error.message.chars().take(1_024).collect();
    v1::Error { message, kind }
}

fn code(kind: Option<&Kind>) -> Code {
    match kind {
        Some(Kind::NotLeader(_) | Kind::EpochNotMatch(_) | Kind::KeyNotInShard(_) | Kind::Unavailable(_)) => {
            Code::Unavailable
        }
        Some(Kind::Busy(_)) => Code::ResourceExhausted,
        Some(Kind::OutcomeUnknown(_)) => Code::DeadlineExceeded,
        Some(Kind::Integrity(_)) => Code::DataLoss,
        Some(Kind::TokenExpired(_) | Kind::ConditionFailed(_)) => Code::FailedPrecondition,
        Some(Kind::InvalidArgument(_)) => Code::InvalidArgument,
        Some(Kind::UnknownKeyspace(_)) => Code::NotFound,
        Some(Kind::AlreadyExists(_)) => Code::AlreadyExists,
        Some(Kind::Internal(_)) | None => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error;

    #[test]
    fn the_whole_error_travels_in_the_details() {
        let error = error::busy(250, "the queue is full");
        let status = to_status(error.clone());
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(status.message(), "busy: the queue is full");
        assert_eq!(v1::Error::decode(status.details()).unwrap(), error);
    }

    #[test]
    fn a_long_list_is_left_out_rather_than_the_kind() {
        let descriptor = v1::ShardDescriptor {
            start_key: vec![7; 4_000].into(),
            ..Default::default()
        };
        let many = v1::EpochNotMatch {
            current: vec![descriptor; 4],
        };
        let error = v1::Error {
            message: "moved".to_owned(),
            kind: Some(Kind::EpochNotMatch(many)),
        };
        let status = to_status(error);
        assert!(status.details().len() < DETAILS_BYTES_MAX);
        let told = v1::Error::decode(status.details()).unwrap();
        assert!(matches!(told.kind, Some(Kind::EpochNotMatch(_))));
    }
}
