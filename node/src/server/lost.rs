//! Followers that lost their log are replaced by the node that leads their shard.
//!
//! A follower that denies entries it had acknowledged forgot them: its disk did, or an old copy of
//! its directory was put back. Its acknowledgements counted, so sending the entries again under
//! the same id would hide the loss; it comes back under a new one, as a learner.

use std::sync::Arc;
use std::time::Duration;

use reelkv_proto::types::ReplicaId;
use reelkv_proto::v1;
use tokio_util::sync::CancellationToken;

use super::member::Member;
use crate::replica::Replica;

/// How often a node looks at the shards it leads.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

pub(super) async fn replace_lost(member: Arc<Member>, stop: CancellationToken) {
    loop {
        tokio::select! {
            biased;
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
            () = stop.cancelled() => return,
        }
        for replica in member.replicas.all().iter().filter(|replica| replica.is_leader()) {
            for lost in replica.lost_logs() {
                tokio::select! {
                    biased;
                    () = replace(&member, replica, lost) => {}
                    () = stop.cancelled() => return,
                }
            }
        }
    }
}

async fn replace(member: &Arc<Member>, replica: &Replica, lost: ReplicaId) {
    let shard_id = replica.id().shard_id;
    let Some((node, _)) = replica.members().remove(&lost) else {
        return;
    };
    let request = v1::ReplaceReplicaRequest {
        shard_id,
        old_replica_id: lost,
        member: Some(v1::Member {
            replica_id: lost,
            node_id: node.node_id,
            addr: node.addr,
        }),
    };
    if let Err(error) = member.replace_replica(request).await {
        tracing::debug!(shard_id, lost, error = error.message, "not replaced yet");
    }
}
