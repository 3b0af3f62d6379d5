//! The directory as the meta shard holds it: one record under a system key, changed by
//! compare-and-put through the shard's leader, read by every node now and then.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use reelkv_proto::checksum::client_crc;
use reelkv_proto::types::{META_SHARD, SYSTEM_KEYSPACE, stored_key};
use reelkv_proto::v1::condition::Kind as Condition;
use reelkv_proto::v1::error::Kind;
use reelkv_proto::v1::{self, peer_request, peer_response};
use tokio_util::sync::CancellationToken;

use super::directory;
use super::member::Member;
use crate::error;
use crate::replica::Replica;
use crate::shard::{Write, WriteKind, WriteOperation};
use crate::storage::Lookup;

const DIRECTORY_KEY: &[u8] = b"directory";
const FOLLOW_INTERVAL: Duration = Duration::from_millis(500);
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// Changes that lost a race are made again this often.
const RACES_MAX: u32 = 8;

impl Member {
    /// Reads the directory from the meta shard, linearizably. Only its leader's node can.
    ///
    /// # Errors
    /// `NotLeader` or `Unavailable`.
    pub(super) async fn read_directory(&self) -> Result<(v1::Directory, u64), v1::Error> {
        let replica = self.meta_replica()?;
        let record = replica.get(&stored_key(SYSTEM_KEYSPACE, DIRECTORY_KEY)).await?;
        let Some((version, value)) = record.and_then(|record| Some((record.version, record.value?))) else {
            return Ok((v1::Directory::default(), 0));
        };
        Ok((decode(value)?, version))
    }

    /// Changes the directory. `change` may run more than once; an error from it changes nothing.
    ///
    /// # Errors
    /// `NotLeader`, `Unavailable`, `OutcomeUnknown`, or what `change` said.
    pub(super) async fn change_directory<T>(
        &self,
        mut change: impl FnMut(&mut v1::Directory) -> Result<T, v1::Error>,
    ) -> Result<T, v1::Error> {
        for _ in 0..RACES_MAX {
            let (mut directory, version) = self.read_directory().await?;
            if directory.version == 0 {
                // There is no map to change; the first is written by `record_first_directory`.
                return Err(error::unavailable("the cluster is still being made"));
            }
            let before = directory.clone();
            let outcome = change(&mut directory)?;
            if directory == before {
                return Ok(outcome);
            }
            directory.version += 1;
            match self.put_directory(&directory, version).await {
                Ok(()) => {
                    self.directory.learn(directory);
                    return Ok(outcome);
                }
                Err(v1::Error {
                    kind: Some(Kind::ConditionFailed(_)),
                    ..
                }) => {}
                Err(error) => return Err(error),
            }
        }
        Err(error::busy(200, "the directory is being changed by others"))
    }

    /// Writes a newborn cluster's directory, unless there is one.
    ///
    /// # Errors
    /// As for a change.
    pub(super) async fn write_first_directory(&self, plan: &v1::Directory) -> Result<(), v1::Error> {
        let (present, version) = self.read_directory().await?;
        if present.version > 0 {
            return Ok(());
        }
        let first = v1::Directory {
            version: 1,
            ..plan.clone()
        };
        self.put_directory(&first, version).await?;
        self.directory.learn(first);
        Ok(())
    }

    async fn put_directory(&self, directory: &v1::Directory, expected: u64) -> Result<(), v1::Error> {
        let value = Bytes::from(directory.encode_to_vec());
        let crc = client_crc(SYSTEM_KEYSPACE, DIRECTORY_KEY, &value);
        let condition = if expected == 0 {
            Condition::Absent(true)
        } else {
            Condition::Version(expected)
        };
        let operation = WriteOperation {
            key: stored_key(SYSTEM_KEYSPACE, DIRECTORY_KEY),
            put: Some((value, crc)),
            ttl_ms: 0,
            condition: Some(condition),
        };
        let write = Write {
            token: None,
            kind: WriteKind::Operations(vec![operation]),
        };
        self.meta_replica()?.write(write, WRITE_TIMEOUT).await.map(|_| ())
    }

    fn meta_replica(&self) -> Result<Arc<Replica>, v1::Error> {
        self.replicas
            .get(META_SHARD)
            .ok_or_else(|| error::not_leader(META_SHARD, 0, ""))
    }

    /// Whether this node leads the meta shard.
    pub(super) fn leads_meta(&self) -> bool {
        self.replicas
            .get(META_SHARD)
            .is_some_and(|replica| replica.is_leader())
    }

    /// The directory as this node's own meta replica has applied it: perhaps a little old.
    fn applied_directory(&self) -> Option<v1::Directory> {
        let replica = self.replicas.get(META_SHARD)?;
        let key = stored_key(SYSTEM_KEYSPACE, DIRECTORY_KEY);
        let (view, _) = replica.store().view_of_key(&key)?;
        match view.get(&key) {
            Lookup::Value(record) => decode(record.value?).ok(),
            Lookup::Absent { .. } => None,
            Lookup::Unproven(damage) => {
                replica.store().found(&damage);
                None
            }
        }
    }

    /// Learns the directory as the meta shard has it now.
    ///
    /// # Errors
    /// The meta shard has no leader, or it is not known here.
    pub(super) async fn ask_meta_shard(&self, timeout: Duration) -> Result<(), v1::Error> {
        let Some(addr) = self.meta_leader_addr() else {
            let (directory, _) = self.read_directory().await?;
            self.directory.learn(directory);
            return Ok(());
        };
        let request = peer_request::Body::Directory(v1::PeerDirectoryRequest {
            newer_than: self.directory.get().version,
            from_meta_shard: true,
        });
        match self.ask(&addr, request, timeout.min(ASK_TIMEOUT)).await? {
            peer_response::Body::Directory(directory) => {
                self.directory.learn(directory);
                Ok(())
            }
            _ => Err(error::internal("an answer of another kind")),
        }
    }

    /// Learns a newer directory, from the own meta replica or another node.
    pub(super) async fn refresh_directory(&self) {
        if let Some(applied) = self.applied_directory() {
            self.directory.learn(applied);
            return;
        }
        let known = self.directory.get();
        let others: Vec<&str> = known
            .nodes
            .iter()
            .filter(|node| node.node_id != self.node_id() && !node.retired)
            .map(|node| node.addr.as_str())
            .chain(
                self.options
                    .join
                    .iter()
                    .map(String::as_str)
                    .filter(|addr| *addr != self.options.addr),
            )
            .collect();
        if others.is_empty() {
            return;
        }
        let addr = others[self.clock.random_u64() as usize % others.len()];
        let request = v1::PeerRequest {
            cluster_id: self.cluster_id(),
            from_node_id: self.node_id(),
            body: Some(peer_request::Body::Directory(v1::PeerDirectoryRequest {
                newer_than: known.version,
                from_meta_shard: false,
            })),
            ..Default::default()
        };
        let answer = self.transport.call(addr, request, ASK_TIMEOUT).await;
        if let Ok(v1::PeerResponse {
            body: Some(peer_response::Body::Directory(directory)),
            ..
        }) = answer
        {
            self.directory.learn(directory);
        }
    }

    /// Sends an admin request to the node that leads the meta shard, unless this one does.
    pub(super) fn meta_leader_addr(&self) -> Option<String> {
        let known = self.directory();
        let shard = directory::shard(&known, META_SHARD)?;
        let leader = directory::node(&known, shard.leader_node_id)?;
        (leader.node_id != self.node_id()).then(|| leader.addr.clone())
    }
}

fn decode(value: Bytes) -> Result<v1::Directory, v1::Error> {
    v1::Directory::decode(value)
        .map_err(|error| error::internal(format!("the directory cannot be read: {error}")))
}

/// Keeps the node's copy of the directory fresh.
pub(super) async fn follow_directory(member: Arc<Member>, stop: CancellationToken) {
    loop {
        member.refresh_directory().await;
        tokio::select! {
            biased;
            () = tokio::time::sleep(FOLLOW_INTERVAL) => {}
            () = stop.cancelled() => return,
        }
    }
}
