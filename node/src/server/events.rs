//! Events of damage that another node goes on telling.
//!
//! That the voters of a shard differ is told by its leader, which compares them, again and again
//! while a replica waits to be taken in. When another node leads, that one tells it: what a former
//! leader told would stay open for ever.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::member::Member;
use crate::health::Structure;

const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Closes what this node told as the leader of a shard that another leads now.
pub(super) async fn hand_on(member: Arc<Member>, stop: CancellationToken) {
    loop {
        tokio::select! {
            biased;
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
            () = stop.cancelled() => return,
        }
        for shard_id in shards_told_to_differ(&member) {
            let status = member.replicas.get(shard_id).map(|replica| replica.status());
            let leader = status.map_or(0, |status| status.leader_node_id);
            if leader != 0 && leader != member.node_id() {
                tracing::info!(
                    shard_id,
                    leader,
                    "whether the voters agree is told by the shard's leader"
                );
                member.health.repaired(shard_id, Structure::Digest);
            }
        }
    }
}

fn shards_told_to_differ(member: &Member) -> Vec<u64> {
    let open = member.health.open_events();
    let differ = open
        .iter()
        .filter(|event| event.structure == Structure::Digest.word());
    differ.map(|event| event.shard_id).collect()
}
