//! What replicas tell one another of a marker.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use reelkv_proto::types::ReplicaId;
use reelkv_proto::v1::{self, peer_request, peer_response};

use super::judge::Said;
use crate::error;
use crate::raft::{PeerNode, spans_from_wire, spans_to_wire};
use crate::replica::Replica;
use crate::replica::replica::other_voters;
use crate::storage::Bucket;

/// How long a replica may take to apply a marker and to read its view of it.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one voter may take to answer.
const ASK_TIMEOUT: Duration = Duration::from_secs(12);

impl Replica {
    /// What this replica holds at a marker, once it has read it.
    ///
    /// # Errors
    /// `Unavailable` when it does not get there, or does not know any more.
    pub async fn buckets_at(&self, index: u64) -> Result<v1::BucketsResponse, v1::Error> {
        let unknown = || error::unavailable(format!("what is held at entry {index} is not known here"));
        let mut readings = self.divergence().readings.subscribe();
        let is_read = readings.wait_for(|readings| readings.back().is_some_and(|last| last.index >= index));
        let reading = match tokio::time::timeout(READ_TIMEOUT, is_read).await {
            Ok(Ok(readings)) => readings.iter().find(|reading| reading.index == index).cloned(),
            _ => None,
        };
        reading.map(|reading| reading.said.to_wire()).ok_or_else(unknown)
    }

    /// What the other voters say they hold; those that do not say it in time are left out.
    pub(super) async fn ask_voters(&self, index: u64) -> BTreeMap<ReplicaId, Said> {
        let asked = other_voters(self.raft());
        let mut answers: FuturesUnordered<_> = asked
            .iter()
            .map(|(id, node)| async move { (*id, self.ask_buckets(*id, node, index).await) })
            .collect();
        let mut said = BTreeMap::new();
        while let Some((id, answer)) = answers.next().await {
            match answer {
                Ok(answer) => {
                    said.insert(id, answer);
                }
                Err(error) => {
                    let why = error.message;
                    tracing::debug!(id = ?self.id(), voter = id, why, "a voter was not compared");
                }
            }
        }
        said
    }

    async fn ask_buckets(
        &self,
        replica_id: ReplicaId,
        node: &PeerNode,
        index: u64,
    ) -> Result<Said, v1::Error> {
        let request = peer_request::Body::Buckets(v1::BucketsRequest {
            shard_id: self.id().shard_id,
            replica_id,
            index,
        });
        match self.context().ask(&node.addr, request, ASK_TIMEOUT).await? {
            peer_response::Body::Buckets(said) => Said::from_wire(said),
            _ => Err(error::internal("an answer of another kind")),
        }
    }
}

impl Said {
    fn to_wire(&self) -> v1::BucketsResponse {
        let bucket = |bucket: &Bucket| v1::Bucket {
            start_key: bucket.start.clone(),
            end_key: bucket.end.clone(),
            records: bucket.records,
            digest: bucket.digest.to_be_bytes().to_vec().into(),
        };
        v1::BucketsResponse {
            buckets: self.buckets.iter().map(bucket).collect(),
            uncompared: spans_to_wire(&self.uncompared),
        }
    }

    fn from_wire(said: v1::BucketsResponse) -> Result<Self, v1::Error> {
        let bucket = |bucket: v1::Bucket| {
            let digest = bucket.digest[..].try_into().ok().map(u128::from_be_bytes);
            Some(Bucket {
                start: bucket.start_key,
                end: bucket.end_key,
                records: bucket.records,
                digest: digest?,
            })
        };
        let buckets: Option<Vec<Bucket>> = said.buckets.into_iter().map(bucket).collect();
        Ok(Self {
            buckets: buckets.ok_or_else(|| error::internal("a digest of another length"))?,
            uncompared: spans_from_wire(said.uncompared),
        })
    }
}
