//! The other voters of a shard, as its log knows them, and what they say of one entry.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use prost::Message;
use reelkv_proto::types::ReplicaId;
use reelkv_proto::v1::{self, PayloadState, peer_request, peer_response};

use super::ReplicaContext;
use crate::raft::ReplicaMark;
use crate::wal::{FaultyEntry, WalGroup};

/// How long a voter has for its answer.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);

/// Who may hold an entry besides this replica: addresses by replica.
pub(super) struct Voters(BTreeMap<ReplicaId, String>);

/// One voter's word on an entry.
pub(super) struct Answer {
    /// Who answered: the one asked, or a voter that has taken its place.
    pub replica_id: ReplicaId,
    pub addr: String,
    pub state: PayloadState,
}

/// What a round of asking came to.
pub(super) struct Asked {
    /// The payload was found and is in the log again.
    pub restored: bool,
    /// How many were asked.
    pub voters: usize,
    /// What those said that did not have it; nothing of those that did not answer.
    pub answers: Vec<Answer>,
}

impl Voters {
    /// Asks all of them at once for an entry's payload; the first good one is written to the log.
    ///
    /// # Errors
    /// The log is poisoned.
    pub async fn restore(
        &self,
        context: &ReplicaContext,
        group: &WalGroup,
        faulty: FaultyEntry,
    ) -> io::Result<Asked> {
        let ask_one = |(replica_id, addr): (&ReplicaId, &String)| {
            let (replica_id, addr) = (*replica_id, addr.clone());
            async move {
                let answer = ask(context, &addr, group, replica_id, faulty).await?;
                Some((replica_id, addr, answer))
            }
        };
        let mut asked: FuturesUnordered<_> = self.0.iter().map(ask_one).collect();
        let mut round = Asked {
            restored: false,
            voters: self.0.len(),
            answers: Vec::new(),
        };
        while let Some(answer) = asked.next().await {
            let Some((replica_id, addr, answer)) = answer else {
                continue;
            };
            let state = answer.state();
            if state != PayloadState::Found {
                let taken_over = answer.voter && answer.replica_id != 0;
                let replica_id = if taken_over { answer.replica_id } else { replica_id };
                round.answers.push(Answer {
                    replica_id,
                    addr,
                    state,
                });
                continue;
            }
            if crc32fast::hash(&answer.payload) != faulty.payload_crc {
                continue; // another entry's, or damaged on its way
            }
            match group.heal(faulty.log_id, answer.payload).await {
                // Somebody else was quicker, or nobody needs it any more.
                Err(_) if !context.wal.is_poisoned() && group.is_whole(faulty.log_id) => {}
                healed => healed?,
            }
            tracing::info!(id = %group.id(), entry = %faulty.log_id, addr, "a log entry was healed from a peer");
            round.restored = true;
            return Ok(round);
        }
        Ok(round)
    }
}

async fn ask(
    context: &ReplicaContext,
    addr: &str,
    group: &WalGroup,
    replica_id: ReplicaId,
    faulty: FaultyEntry,
) -> Option<v1::FetchPayloadResponse> {
    let request = peer_request::Body::FetchPayload(v1::FetchPayloadRequest {
        shard_id: group.id().shard_id,
        log_id: Some(faulty.log_id.into()),
        replica_id,
    });
    match context.ask(addr, request, ASK_TIMEOUT).await.ok()? {
        peer_response::Body::FetchPayload(answer) => Some(answer),
        _ => None,
    }
}

/// Every other voter that may have acknowledged the entry at an index: of the membership that was valid
/// there, and of all later ones.
///
/// # Errors
/// The birth record, the mark or a membership cannot be understood.
pub(super) async fn other_voters(group: &WalGroup, index: u64) -> io::Result<Voters> {
    let mut voters = BTreeMap::new();
    for membership in memberships(group, index).await? {
        voters.extend(voters_of(&membership));
    }
    if voters.is_empty() {
        let birth = v1::CreateReplicaRequest::decode(group.info()).map_err(io::Error::other)?;
        let replicas = birth.descriptor.unwrap_or_default().replicas;
        voters.extend(
            replicas
                .into_iter()
                .map(|replica| (replica.replica_id, replica.addr)),
        );
    }
    voters.remove(&group.id().replica_id);
    Ok(Voters(voters))
}

/// Whether the log's last membership counts its own replica as a voter.
pub(super) async fn is_voter(group: &WalGroup) -> bool {
    let known = memberships(group, u64::MAX).await.unwrap_or_default();
    let own = group.id().replica_id;
    known
        .last()
        .is_some_and(|last| voters_of(last).any(|(id, _)| id == own))
}

/// The newest membership at or before an index, of log or mark, then those after it in the log. One whose
/// payload cannot be read is left out: it is kept twice, so that hardly happens.
async fn memberships(group: &WalGroup, index: u64) -> io::Result<Vec<v1::Membership>> {
    let in_log = group.memberships();
    let before = in_log.iter().rev().find(|log_id| log_id.index <= index);
    let mut known = Vec::new();
    if let Some(mark) = group.mark() {
        let mark = ReplicaMark::decode(mark).map_err(io::Error::other)?;
        let stored = mark.control.membership.unwrap_or_default();
        let at = stored.log_id.map(|log_id| log_id.index);
        if at >= before.map(|log_id| log_id.index) {
            known.extend(stored.membership);
        }
    }
    let from = match known.is_empty() {
        true => before.map_or(0, |log_id| log_id.index),
        false => before.map_or(0, |log_id| log_id.index + 1),
    };
    for log_id in in_log.into_iter().filter(|log_id| log_id.index >= from) {
        let Ok(entries) = group.read(log_id.index, log_id.index + 1, usize::MAX).await else {
            continue;
        };
        for entry in entries {
            known.push(v1::Membership::decode(entry.payload).map_err(io::Error::other)?);
        }
    }
    known.retain(|membership| !membership.members.is_empty());
    Ok(known)
}

fn voters_of(membership: &v1::Membership) -> impl Iterator<Item = (ReplicaId, String)> {
    let votes = |id: u64| {
        let mut configs = membership.configs.iter();
        configs.any(|config| config.replica_ids.contains(&id))
    };
    let voting = membership
        .members
        .iter()
        .filter(move |member| votes(member.replica_id));
    voting.map(|member| (member.replica_id, member.addr.clone()))
}
