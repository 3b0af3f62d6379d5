//! What this node's log says of an entry that another's lost.

use bytes::Bytes;
use reelkv_proto::v1::{self, PayloadState};

use super::voters::is_voter;
use crate::mutants::Mutant;
use crate::shard::LogId;
use crate::wal::{Wal, WalGroup};

/// What this node's log has of an entry; works before any Raft runs.
pub async fn payload_of(wal: &Wal, request: &v1::FetchPayloadRequest) -> v1::FetchPayloadResponse {
    let id = wal
        .groups()
        .into_iter()
        .find(|id| id.shard_id == request.shard_id);
    let Some(group) = id.and_then(|id| wal.group(id)) else {
        // A replica that is no more cannot say that it never acknowledged anything.
        return v1::FetchPayloadResponse::default();
    };
    let log_id: LogId = request.log_id.unwrap_or_default().into();
    let (state, payload) = look(&group, log_id).await;
    let proves_nothing = match state {
        PayloadState::Found => false,
        // What is committed is so for every replica.
        PayloadState::Purged | PayloadState::Superseded => group.lost().is_some(),
        _ => group.lost().is_some() || request.replica_id != group.id().replica_id,
    };
    v1::FetchPayloadResponse {
        state: match proves_nothing {
            true => PayloadState::Unspecified.into(),
            false => state.into(),
        },
        payload,
        replica_id: group.id().replica_id,
        voter: is_voter(&group).await,
    }
}

async fn look(group: &WalGroup, log_id: LogId) -> (PayloadState, Bytes) {
    let nothing = |state| (state, Bytes::new());
    if group.purged().is_some_and(|purged| purged.index >= log_id.index) {
        return nothing(PayloadState::Purged);
    }
    match group.log_id(log_id.index) {
        Some(own) if own == log_id => {}
        Some(_) if is_committed(group, log_id.index) => return nothing(PayloadState::Superseded),
        _ => return nothing(PayloadState::None),
    }
    if let Ok(mut entries) = group.read(log_id.index, log_id.index + 1, usize::MAX).await
        && entries.len() == 1
    {
        return (PayloadState::Found, entries.remove(0).payload);
    }
    // Purged in between, or unreadable.
    let faulty = group.faulty_in(log_id.index..log_id.index + 1);
    match faulty.first() {
        Some(faulty) if faulty.perhaps_torn || Mutant::CountDamagedAsDontHave.is_on() => {
            nothing(PayloadState::Torn)
        }
        _ => nothing(PayloadState::Damaged),
    }
}

/// Whether the log's own entry at an index is committed, as far as the log remembers.
fn is_committed(group: &WalGroup, index: u64) -> bool {
    let committed = group.committed().filter(|committed| committed.index >= index);
    committed.is_some_and(|committed| group.log_id(committed.index) == Some(committed))
}
