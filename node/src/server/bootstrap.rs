//! Makes a cluster of fresh nodes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reelkv_proto::types::{FIRST_USER_KEY, META_SHARD};
use reelkv_proto::v1::error::Kind;
use reelkv_proto::v1::{self, peer_request, peer_response};

use super::identity::Identity;
use super::member::Member;
use super::node::Node;
use crate::clock::now;
use crate::error;
use crate::limits::INITIAL_SHARDS_MAX;
use crate::placement::spread;
use crate::raft::transport;
use crate::shard::Control;
use crate::wal::GroupId;

const STEP_TIMEOUT: Duration = Duration::from_secs(15);
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
const BIRTH_TIMEOUT: Duration = Duration::from_secs(30);

impl Node {
    /// Makes a cluster of the nodes in the join list, all of them fresh; or finishes one that was
    /// begun by the same request and is not whole yet. Every step may be done again.
    ///
    /// # Errors
    /// Which node is unreachable or belongs to a cluster already. A new cluster then was not begun;
    /// one that was begun can be finished by asking again.
    pub(super) async fn init_cluster(
        self: &Arc<Self>,
        request: v1::InitClusterRequest,
    ) -> Result<v1::InitClusterResponse, v1::Error> {
        let _one_at_a_time = self.joining.lock().await;
        let plan = match self.member() {
            Some(member) => {
                let plan = member.unfinished_plan(&request)?;
                self.all_unborn(&plan).await?;
                plan
            }
            None => self.new_plan(&request).await?,
        };
        for node in &plan.nodes {
            self.bootstrap_node(node, &plan).await?;
        }
        for shard in &plan.shards {
            for replica in &shard.replicas {
                self.create_replica(shard, replica).await?;
            }
        }
        let member = self.require_member()?;
        member.record_first_directory(plan.clone()).await?;
        Ok(v1::InitClusterResponse {
            cluster_id: plan.cluster_id,
            nodes: plan.nodes,
        })
    }

    /// Nobody knows of a map yet: the cluster may have been made, and used, without this node.
    async fn all_unborn(&self, plan: &v1::Directory) -> Result<(), v1::Error> {
        for node in plan.nodes.iter().filter(|node| node.addr != self.options.addr) {
            let hello = self.say_hello(&node.addr).await?;
            let known = hello.cluster_id.is_empty() || hello.cluster_id == plan.cluster_id;
            if !known || hello.directory_version > 0 {
                let id = hex(&hello.cluster_id);
                let message = format!(
                    "node {} belongs to cluster {id} already; nothing was changed",
                    node.addr
                );
                return Err(error::already_exists(message));
            }
        }
        Ok(())
    }

    async fn say_hello(&self, addr: &str) -> Result<v1::HelloResponse, v1::Error> {
        let hello = peer_request::Body::Hello(v1::HelloRequest {
            addr: self.options.addr.clone(),
        });
        match self.ask(addr, hello, HELLO_TIMEOUT).await {
            Ok(peer_response::Body::Hello(hello)) => Ok(hello),
            Ok(_) => Err(error::internal("an answer of another kind")),
            Err(error) => {
                let message = format!("node {addr} of the join list does not answer: {}", error.message);
                Err(error::unavailable(message))
            }
        }
    }

    async fn new_plan(&self, request: &v1::InitClusterRequest) -> Result<v1::Directory, v1::Error> {
        let nodes = self.fresh_nodes().await?;
        check(request, nodes.len())?;
        let own = nodes
            .iter()
            .position(|node| node.addr == self.options.addr)
            .unwrap_or(0);
        Ok(first_directory(request, self.clock.random_id(), nodes, own))
    }

    /// The join list's nodes, if all of them answer and none belongs to a cluster.
    async fn fresh_nodes(&self) -> Result<Vec<v1::NodeDescriptor>, v1::Error> {
        let mut addrs = self.options.join.clone();
        if !addrs.contains(&self.options.addr) {
            addrs.insert(0, self.options.addr.clone());
        }
        let mut nodes = Vec::with_capacity(addrs.len());
        for (position, addr) in addrs.into_iter().enumerate() {
            let hello = match addr == self.options.addr {
                true => self.hello(),
                false => self.say_hello(&addr).await?,
            };
            if !hello.cluster_id.is_empty() {
                let id = hex(&hello.cluster_id);
                let message = match hello.directory_version {
                    0 => format!(
                        "node {addr} belongs to cluster {id}, which is still being made; \
                         run 'reelkv cluster init --addr {addr}' to finish it; nothing was changed"
                    ),
                    _ => format!("node {addr} belongs to cluster {id} already; nothing was changed"),
                };
                return Err(error::already_exists(message));
            }
            nodes.push(v1::NodeDescriptor {
                node_id: position as u64 + 1,
                addr,
                http_addr: hello.http_addr,
                zone: hello.zone,
                retired: false,
            });
        }
        Ok(nodes)
    }

    /// Who this node is, for others.
    pub(super) fn hello(&self) -> v1::HelloResponse {
        let member = self.member();
        v1::HelloResponse {
            cluster_id: member
                .as_ref()
                .map(|member| member.cluster_id())
                .unwrap_or_default(),
            node_id: member.as_ref().map_or(0, |member| member.node_id()),
            directory_version: member.map_or(0, |member| member.directory.get().version),
            addr: self.options.addr.clone(),
            http_addr: self.options.http_addr.clone(),
            zone: self.options.zone.clone(),
        }
    }

    async fn bootstrap_node(
        self: &Arc<Self>,
        node: &v1::NodeDescriptor,
        plan: &v1::Directory,
    ) -> Result<(), v1::Error> {
        let request = v1::BootstrapRequest {
            cluster_id: plan.cluster_id.clone(),
            node_id: node.node_id,
            directory: Some(plan.clone()),
        };
        match node.addr == self.options.addr {
            true => self.bootstrap_locked(request).await,
            false => self
                .ask(&node.addr, peer_request::Body::Bootstrap(request), STEP_TIMEOUT)
                .await
                .map(|_| ()),
        }
    }

    /// Becomes a member of a new cluster. Doing it again changes nothing.
    ///
    /// # Errors
    /// The node belongs to another cluster, or its directory cannot be written.
    pub(super) async fn bootstrap(self: &Arc<Self>, request: v1::BootstrapRequest) -> Result<(), v1::Error> {
        let _one_at_a_time = self.joining.lock().await;
        self.bootstrap_locked(request).await
    }

    async fn bootstrap_locked(self: &Arc<Self>, request: v1::BootstrapRequest) -> Result<(), v1::Error> {
        if let Some(member) = self.member() {
            let same = member.cluster_id() == request.cluster_id && member.node_id() == request.node_id;
            if !same || member.directory.get().version > 0 {
                return Err(error::already_exists("this node belongs to a cluster already"));
            }
            if let Some(plan) = request.directory {
                member.directory.learn(plan);
            }
            return Ok(());
        }
        let cluster_id = request.cluster_id[..].try_into();
        let cluster_id = cluster_id.map_err(|_| error::invalid("cluster_id", "a cluster id has 16 bytes"))?;
        let identity = Identity {
            cluster_id,
            node_id: request.node_id,
        };
        self.take_number(identity, request.directory)
            .await
            .map_err(error::internal)
    }

    /// Has one of a shard's first replicas made on the node it belongs to. A node that was started
    /// again while its cluster is being made may need a moment.
    async fn create_replica(
        &self,
        shard: &v1::ShardDescriptor,
        replica: &v1::ReplicaDescriptor,
    ) -> Result<(), v1::Error> {
        let member = self.require_member()?;
        let deadline = now() + STEP_TIMEOUT;
        loop {
            match member.create_replica_on(shard, replica, None).await {
                Err(v1::Error {
                    kind: Some(Kind::Unavailable(_)),
                    ..
                }) if now() < deadline => tokio::time::sleep(Duration::from_millis(100)).await,
                outcome => return outcome,
            }
        }
    }
}

impl Member {
    /// What this node's cluster is to be, if it was begun by such a request and not finished.
    fn unfinished_plan(&self, request: &v1::InitClusterRequest) -> Result<v1::Directory, v1::Error> {
        let plan = (*self.directory.get()).clone();
        let id = hex(&self.cluster_id());
        if plan.version > 0 || plan.shards.is_empty() {
            return Err(error::already_exists(format!(
                "this node belongs to cluster {id} already; nothing was changed"
            )));
        }
        if (plan.initial_shards, plan.replicas) != (request.shards, request.replicas) {
            return Err(error::already_exists(format!(
                "cluster {id} was begun with --shards {} --replicas {}; finish it with those; nothing was changed",
                plan.initial_shards, plan.replicas
            )));
        }
        let meta = plan.shards.first().map_or(&[][..], |shard| &shard.replicas);
        if meta.iter().all(|replica| replica.node_id != self.node_id()) {
            let addr = meta.first().map_or("", |replica| &replica.addr);
            return Err(error::already_exists(format!(
                "cluster {id} is still being made; run 'reelkv cluster init --addr {addr}' to finish it"
            )));
        }
        Ok(plan)
    }

    /// Has a replica made on the node it belongs to, this one or another: one of the shard's first,
    /// or, with the shard's `birth`, one that joins it.
    pub(super) async fn create_replica_on(
        &self,
        shard: &v1::ShardDescriptor,
        replica: &v1::ReplicaDescriptor,
        birth: Option<v1::ShardBirth>,
    ) -> Result<(), v1::Error> {
        let request = v1::CreateReplicaRequest {
            descriptor: Some(shard.clone()),
            replica_id: replica.replica_id,
            initialize: birth.is_none(),
            birth: Some(birth.unwrap_or_else(|| Control::birth_of(shard, 1))),
        };
        if replica.node_id == self.node_id() {
            return self.create_replica_here(request).await;
        }
        self.ask(
            &replica.addr,
            peer_request::Body::CreateReplica(request),
            STEP_TIMEOUT,
        )
        .await
        .map(|_| ())
    }

    /// Makes a replica here.
    pub(super) async fn create_replica_here(
        &self,
        request: v1::CreateReplicaRequest,
    ) -> Result<(), v1::Error> {
        if !self.is_started() {
            return Err(error::unavailable("this node's log is still being judged"));
        }
        let id = GroupId {
            shard_id: request.descriptor.as_ref().map_or(0, |shard| shard.shard_id),
            replica_id: request.replica_id,
        };
        if self.lost.lock().contains(&id) {
            return Err(error::already_exists("that replica was here and is lost"));
        }
        self.replicas.create(request).await
    }

    /// Asks another node.
    pub(super) async fn ask(
        &self,
        addr: &str,
        body: peer_request::Body,
        timeout: Duration,
    ) -> Result<peer_response::Body, v1::Error> {
        let own = (self.cluster_id(), self.node_id());
        transport::ask(&*self.transport, own, addr, body, timeout).await
    }

    /// Writes the directory of a newborn cluster as soon as the meta shard has a leader.
    async fn record_first_directory(&self, directory: v1::Directory) -> Result<(), v1::Error> {
        let deadline = now() + BIRTH_TIMEOUT;
        loop {
            let recorded = self.write_first_directory(&directory).await;
            match recorded {
                Ok(()) => return Ok(()),
                Err(error) if now() > deadline => return Err(error),
                Err(_) => self.ask_for_meta_leadership().await,
            }
        }
    }

    /// The directory is written where the meta shard is led; at the birth of a cluster that is to
    /// be here.
    async fn ask_for_meta_leadership(&self) {
        if let Some(replica) = self.replicas.get(META_SHARD)
            && let leader = replica.descriptor().leader_node_id
            && leader != self.node_id()
            && let Some(node) = super::directory::node(&self.directory.get(), leader)
        {
            let request = v1::TransferLeaderRequest {
                shard_id: META_SHARD,
                to_node_id: self.node_id(),
            };
            let asked = self
                .ask(
                    &node.addr,
                    peer_request::Body::TransferLeader(request),
                    STEP_TIMEOUT,
                )
                .await;
            if let Err(error) = asked {
                tracing::debug!(error = error.message, "the meta shard is led elsewhere for now");
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn check(request: &v1::InitClusterRequest, nodes: usize) -> Result<(), v1::Error> {
    if request.shards == 0 || request.shards > INITIAL_SHARDS_MAX {
        let message = format!(
            "--shards must be between 1 and {INITIAL_SHARDS_MAX}, not {}",
            request.shards
        );
        return Err(error::invalid("shards", message));
    }
    if ![1, 3, 5].contains(&request.replicas) || request.replicas as usize > nodes {
        let message = format!(
            "--replicas must be 1, 3 or 5 and at most the {nodes} nodes, not {}",
            request.replicas
        );
        return Err(error::invalid("replicas", message));
    }
    Ok(())
}

/// The map of a newborn cluster: the meta shard, and data shards that tile the keyspaces' numbers.
/// The meta shard's first replica, which leads it at birth, is on the node at `own`, which makes the
/// cluster and writes the map.
fn first_directory(
    request: &v1::InitClusterRequest,
    cluster_id: [u8; 16],
    nodes: Vec<v1::NodeDescriptor>,
    own: usize,
) -> v1::Directory {
    let epoch = Some(v1::ShardEpoch {
        conf_version: 0,
        range_version: 1,
    });
    let shard = |number: u64, start_key: Bytes, end_key: Bytes| v1::ShardDescriptor {
        shard_id: META_SHARD + number,
        start_key,
        end_key,
        epoch,
        replicas: spread(&nodes, request.replicas as usize, number as usize),
        leader_node_id: 0,
    };
    let user = Bytes::copy_from_slice(&FIRST_USER_KEY);
    let count = u64::from(request.shards);
    let start = |slot: u64| match slot {
        0 => user.clone(),
        slot => Bytes::copy_from_slice(&slot_start(slot, count).to_be_bytes()),
    };
    let end = |slot: u64| {
        if slot + 1 == count {
            Bytes::new()
        } else {
            start(slot + 1)
        }
    };
    let meta = v1::ShardDescriptor {
        replicas: spread(&nodes, request.replicas as usize, own),
        ..shard(0, Bytes::new(), user.clone())
    };
    let data = (0..count).map(|slot| shard(slot + 1, start(slot), end(slot)));
    v1::Directory {
        cluster_id: Bytes::copy_from_slice(&cluster_id),
        version: 0,
        shards: std::iter::once(meta).chain(data).collect(),
        replicas: request.replicas,
        initial_shards: request.shards,
        next_shard_id: META_SHARD + count + 1,
        next_node_id: nodes.len() as u64 + 1,
        next_keyspace_id: 0,
        nodes,
        ..Default::default()
    }
}

/// First keyspace number of one of `count` equal slots.
pub(super) fn slot_start(slot: u64, count: u64) -> u32 {
    ((slot << 32) / count.max(1)) as u32
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use reelkv_proto::types::KeyRange;

    use super::*;

    #[test]
    fn the_first_shards_tile_the_key_space() {
        for shards in [1, 3, 8, 100] {
            let nodes = (1..=3)
                .map(|node_id| v1::NodeDescriptor {
                    node_id,
                    ..Default::default()
                })
                .collect();
            let directory =
                first_directory(&v1::InitClusterRequest { shards, replicas: 3 }, [0; 16], nodes, 0);
            assert_eq!(directory.shards.len() as u32, shards + 1);
            let mut end = Bytes::new();
            for shard in &directory.shards {
                let range = KeyRange::of(shard);
                assert_eq!(range.start, end);
                assert!(range.end.is_empty() || range.start < range.end);
                end = range.end;
            }
            assert!(end.is_empty());
        }
    }

    #[test]
    fn the_nodes_take_turns_as_first_replica() {
        let nodes = (1..=3)
            .map(|node_id| v1::NodeDescriptor {
                node_id,
                ..Default::default()
            })
            .collect();
        let directory = first_directory(
            &v1::InitClusterRequest {
                shards: 6,
                replicas: 3,
            },
            [0; 16],
            nodes,
            0,
        );
        let firsts: Vec<_> = directory.shards[1..]
            .iter()
            .map(|shard| shard.replicas[0].node_id)
            .collect();
        assert_eq!(firsts, [2, 3, 1, 2, 3, 1]);
    }
}
