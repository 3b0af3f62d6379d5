//! Entries of a log whose payloads can no longer be read: fetched by log id and CRC from the
//! other voters, before the replica's Raft starts.
//!
//! An entry of the last batch before a power cut may never have been acknowledged. It is cut only
//! once **every** other voter has said that it has no readable payload for it and never
//! acknowledged it either. Nothing else is ever discarded because others do not have it.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use reelkv_proto::types::ReplicaId;
use reelkv_proto::v1::{self, PayloadState, peer_request, peer_response};

use super::ReplicaContext;
use crate::clock::now;
use crate::health::{Action, Damage, Kind, Structure};
use crate::raft::ReplicaMark;
use crate::shard::LogId;
use crate::wal::{EntryKind, FaultyEntry, GroupId, Wal, WalGroup};

const ASK_TIMEOUT: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(200);
/// After this long without an answer the replica is given up and replaced, if a majority is there.
const PATIENCE: Duration = Duration::from_secs(60);

/// Heals what can be healed, cuts what may be cut.
///
/// # Errors
/// Something stays unreadable: the replica must be replaced.
pub(super) async fn heal(context: &Arc<ReplicaContext>, id: GroupId) -> io::Result<()> {
    let Some(group) = context.wal.group(id) else {
        return Ok(());
    };
    let damaged = report(context, &group);
    let deadline = now() + PATIENCE;
    while let Some(faulty) = group.faulty().first().copied() {
        let voters = other_voters(&group).await?;
        match heal_one(context, &group, &voters, faulty).await? {
            true => {}
            false if now() > deadline => {
                return Err(io::Error::other(format!(
                    "entry {} could not be fetched from any voter",
                    faulty.log_id
                )));
            }
            false => tokio::time::sleep(PAUSE).await,
        }
    }
    if damaged {
        context.health.repaired(id.shard_id, Structure::Wal);
    }
    Ok(())
}

/// Puts entries that were whole once and are not now on record; what a power cut may have torn is
/// no damage. Returns whether there were any.
fn report(context: &Arc<ReplicaContext>, group: &WalGroup) -> bool {
    let faulty = group.faulty();
    let damaged: Vec<LogId> = faulty
        .iter()
        .filter(|entry| !entry.perhaps_torn)
        .map(|entry| entry.log_id)
        .collect();
    let (Some(first), Some(last)) = (damaged.first(), damaged.last()) else {
        return false;
    };
    context.health.damaged(Damage::of_replica(
        (group.id().shard_id, group.id().replica_id),
        Structure::Wal,
        Kind::Checksum,
        Action::Heal,
        format!("payloads of {} entries, {first} to {last}", damaged.len()),
    ));
    true
}

/// One round of asking. True when the entry is no longer faulty.
async fn heal_one(
    context: &Arc<ReplicaContext>,
    group: &WalGroup,
    voters: &BTreeMap<ReplicaId, String>,
    faulty: FaultyEntry,
) -> io::Result<bool> {
    let (mut without, mut beyond_help) = (0, false);
    for addr in voters.values() {
        let answer = ask(context, addr, group.id().shard_id, faulty.log_id).await;
        let Some(answer) = answer else { continue };
        match answer.state() {
            PayloadState::Found if crc32fast::hash(&answer.payload) == faulty.payload_crc => {
                group.heal(faulty.log_id, answer.payload).await?;
                tracing::info!(id = %group.id(), entry = %faulty.log_id, addr, "a log entry was healed from a peer");
                return Ok(true);
            }
            PayloadState::None | PayloadState::Torn => without += 1,
            PayloadState::Purged => beyond_help = true,
            PayloadState::Found | PayloadState::Damaged | PayloadState::Unspecified => {}
        }
    }
    if without == voters.len() && faulty.perhaps_torn {
        group.cut_from(faulty.log_id.index).await?;
        tracing::info!(id = %group.id(), entry = %faulty.log_id, "a torn entry that no voter has was cut");
        return Ok(true);
    }
    match beyond_help {
        true => Err(io::Error::other(format!(
            "entry {} is committed and purged elsewhere",
            faulty.log_id
        ))),
        false => Ok(false),
    }
}

async fn ask(
    context: &ReplicaContext,
    addr: &str,
    shard_id: u64,
    log_id: LogId,
) -> Option<v1::FetchPayloadResponse> {
    let request = v1::PeerRequest {
        cluster_id: context.cluster_id.clone(),
        from_node_id: context.node_id,
        body: Some(peer_request::Body::FetchPayload(v1::FetchPayloadRequest {
            shard_id,
            log_id: Some(log_id.into()),
        })),
        ..Default::default()
    };
    match context
        .transport
        .call(addr, request, ASK_TIMEOUT)
        .await
        .ok()?
        .body?
    {
        peer_response::Body::FetchPayload(answer) => Some(answer),
        _ => None,
    }
}

/// Every other member the log knows of: of the last mark, the birth record and later changes.
async fn other_voters(group: &WalGroup) -> io::Result<BTreeMap<ReplicaId, String>> {
    let mut members: BTreeMap<ReplicaId, String> = BTreeMap::new();
    let birth = v1::CreateReplicaRequest::decode(group.info()).map_err(io::Error::other)?;
    let mut latest = None;
    if let Some(mark) = group.mark() {
        let mark = ReplicaMark::decode(mark).map_err(io::Error::other)?;
        latest = mark.control.membership.and_then(|stored| stored.membership);
    }
    let first = group.purged().map_or(0, |id| id.index + 1);
    let end = group.first_fault().unwrap_or(u64::MAX);
    let mut at = first;
    while at < end {
        let entries = group.read(at, end, 1 << 20).await?;
        let Some(last) = entries.last() else { break };
        at = last.log_id.index + 1;
        for entry in entries
            .into_iter()
            .filter(|entry| entry.kind == EntryKind::Membership)
        {
            latest = Some(v1::Membership::decode(entry.payload).map_err(io::Error::other)?);
        }
    }
    match latest.filter(|membership| !membership.members.is_empty()) {
        Some(membership) => {
            let voters = |id: u64| {
                membership
                    .configs
                    .iter()
                    .any(|config| config.replica_ids.contains(&id))
            };
            let voting = membership
                .members
                .iter()
                .filter(|member| voters(member.replica_id));
            members.extend(voting.map(|member| (member.replica_id, member.addr.clone())));
        }
        None => {
            let replicas = birth.descriptor.unwrap_or_default().replicas;
            members.extend(
                replicas
                    .into_iter()
                    .map(|replica| (replica.replica_id, replica.addr)),
            );
        }
    }
    members.remove(&group.id().replica_id);
    Ok(members)
}

/// What this node's log has of an entry; works before any Raft runs.
pub async fn payload_of(wal: &Wal, request: &v1::FetchPayloadRequest) -> v1::FetchPayloadResponse {
    let say = |state: PayloadState, payload| v1::FetchPayloadResponse {
        state: state.into(),
        payload,
    };
    let nothing = |state| say(state, Default::default());
    let log_id: LogId = request.log_id.unwrap_or_default().into();
    let id = wal
        .groups()
        .into_iter()
        .find(|id| id.shard_id == request.shard_id);
    let Some(group) = id.and_then(|id| wal.group(id)) else {
        // A replica that is no more cannot say that it never acknowledged anything.
        return nothing(PayloadState::Unspecified);
    };
    if group.purged().is_some_and(|purged| purged.index >= log_id.index) {
        return nothing(PayloadState::Purged);
    }
    if group.log_id(log_id.index) != Some(log_id) {
        return nothing(PayloadState::None);
    }
    if let Some(faulty) = group.faulty().iter().find(|faulty| faulty.log_id == log_id) {
        return nothing(if faulty.perhaps_torn {
            PayloadState::Torn
        } else {
            PayloadState::Damaged
        });
    }
    match group.read(log_id.index, log_id.index + 1, usize::MAX).await {
        Ok(mut entries) if entries.len() == 1 => say(PayloadState::Found, entries.remove(0).payload),
        _ => nothing(PayloadState::Damaged),
    }
}
