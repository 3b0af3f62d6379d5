//! New keyspaces, and the cutting of their empty ranges into shards.
//!
//! A cut goes in steps that can each be repeated, so that whoever leads the meta shard carries
//! on where a former leader stopped: the directory records the intended children; the parent
//! gives the range away by a log entry (refused if it holds records); the children are born on
//! their nodes; the directory publishes them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reelkv_proto::types::{KeyRange, KeyspaceId, ShardId, stored_key};
use reelkv_proto::v1::{self, peer_request};

use super::bootstrap::slot_start;
use super::directory::{self, even_cuts, shard_of};
use super::member::Member;
use crate::clock::now;
use crate::error;
use crate::limits::{INITIAL_SHARDS_MAX, KEY_BYTES_MAX, KEYSPACE_NAME_BYTES_MAX};
use crate::placement::{replicas_per_node, spread_least_loaded};
use crate::shard::{Write, WriteKind};

const STEP_TIMEOUT: Duration = Duration::from_secs(5);
const CUT_TIMEOUT: Duration = Duration::from_secs(30);

impl Member {
    /// Makes a keyspace; runs on the node that leads the meta shard.
    ///
    /// # Errors
    /// `AlreadyExists`, `InvalidArgument`, or what kept a step from being done (try again).
    pub(super) async fn create_keyspace_here(
        self: &Arc<Self>,
        request: v1::CreateKeyspaceRequest,
    ) -> Result<v1::Keyspace, v1::Error> {
        check(&request)?;
        let _one_at_a_time = self.reshaping.lock().await;
        self.finish_pending_splits().await?;
        let (known, _) = self.read_directory().await?;
        if directory::keyspace(&known, &request.name).is_some() {
            return Err(error::already_exists(format!(
                "keyspace '{}' exists already",
                request.name
            )));
        }
        let cuts = cuts(&request, known.initial_shards);
        let keyspace_id = self.change_directory(|directory| plan(directory, &cuts)).await?;
        self.finish_pending_splits().await?;
        let keyspace = v1::Keyspace {
            keyspace_id,
            name: request.name,
        };
        self.change_directory(|directory| {
            match directory::keyspace(directory, &keyspace.name) {
                Some(id) if id == keyspace_id => {}
                Some(_) => {
                    return Err(error::already_exists(format!(
                        "keyspace '{}' exists already",
                        keyspace.name
                    )));
                }
                None => directory.keyspaces.push(keyspace.clone()),
            }
            Ok(keyspace.clone())
        })
        .await
    }

    /// Carries on every cut that was begun.
    pub(super) async fn finish_pending_splits(self: &Arc<Self>) -> Result<(), v1::Error> {
        let (known, _) = self.read_directory().await?;
        for split in known.pending_splits {
            self.finish_split(&split).await?;
        }
        Ok(())
    }

    async fn finish_split(self: &Arc<Self>, split: &v1::PendingSplit) -> Result<(), v1::Error> {
        self.narrow(split.parent_shard_id, split.parent_end_key.clone())
            .await?;
        for child in &split.children {
            let mut born = 0;
            for replica in &child.replicas {
                match self.create_replica_on(child, replica, None).await {
                    Ok(()) => born += 1,
                    Err(error) => {
                        tracing::warn!(
                            shard_id = child.shard_id,
                            node_id = replica.node_id,
                            error = error.message,
                            "a new shard's replica was not made yet; it will be replaced or made later"
                        );
                    }
                }
            }
            if born * 2 <= child.replicas.len() {
                let message = format!("shard {} could be born on {born} nodes only", child.shard_id);
                return Err(error::unavailable(message));
            }
        }
        self.change_directory(|directory| {
            if !directory.pending_splits.contains(split) {
                return Ok(());
            }
            directory.pending_splits.retain(|pending| pending != split);
            if let Some(parent) = directory
                .shards
                .iter_mut()
                .find(|shard| shard.shard_id == split.parent_shard_id)
            {
                parent.end_key = split.parent_end_key.clone();
                let epoch = parent.epoch.get_or_insert_default();
                epoch.range_version += 1;
            }
            directory.shards.extend(split.children.iter().cloned());
            directory.shards.sort_by(|a, b| a.start_key.cmp(&b.start_key));
            Ok(())
        })
        .await
    }

    /// Has a shard give away its (empty) range from `end_key` on, wherever its leader is.
    async fn narrow(self: &Arc<Self>, shard_id: ShardId, end_key: Bytes) -> Result<(), v1::Error> {
        let deadline = now() + CUT_TIMEOUT;
        loop {
            let narrowed = match self.replicas.get(shard_id) {
                Some(replica) if replica.is_leader() => self.narrow_here(shard_id, end_key.clone()).await,
                _ => self.narrow_elsewhere(shard_id, end_key.clone()).await,
            };
            match narrowed {
                Ok(()) => return Ok(()),
                Err(error) if now() > deadline => return Err(error),
                Err(error) if matches!(error.kind, Some(v1::error::Kind::InvalidArgument(_))) => {
                    return Err(error);
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    /// Has a shard led here give away its range from `end_key` on.
    ///
    /// # Errors
    /// The range holds records, or this node does not lead the shard.
    pub(super) async fn narrow_here(&self, shard_id: ShardId, end_key: Bytes) -> Result<(), v1::Error> {
        let replica = self
            .replicas
            .get(shard_id)
            .ok_or_else(|| error::not_leader(shard_id, 0, ""))?;
        let given_away = {
            let held = replica.store().with_control(|control| control.range().clone());
            if held.end == end_key {
                return Ok(());
            }
            if !held.contains(&end_key) {
                return Err(error::invalid(
                    "end_key",
                    format!("shard {shard_id} does not hold the cut"),
                ));
            }
            KeyRange {
                start: end_key.clone(),
                end: held.end,
            }
        };
        let view = replica
            .store()
            .view()
            .ok_or_else(|| error::unavailable("the replica is being refilled"))?;
        let empty_at = view.version();
        let page = replica.scan_local(given_away, 1, 1).await?;
        if !page.records.is_empty() {
            return Err(error::invalid(
                "end_key",
                format!("shard {shard_id} holds records behind the cut"),
            ));
        }
        let write = Write {
            token: None,
            kind: WriteKind::NarrowTo {
                end: end_key,
                empty_at,
            },
        };
        replica.write(write, STEP_TIMEOUT).await.map(|_| ())
    }

    async fn narrow_elsewhere(&self, shard_id: ShardId, end_key: Bytes) -> Result<(), v1::Error> {
        let known = self.directory();
        let leader = directory::shard(&known, shard_id).map_or(0, |shard| shard.leader_node_id);
        let node = directory::node(&known, leader).filter(|node| node.node_id != self.node_id());
        let node = node.ok_or_else(|| error::not_leader(shard_id, 0, ""))?;
        let request = v1::NarrowShardRequest { shard_id, end_key };
        self.ask(&node.addr, peer_request::Body::NarrowShard(request), STEP_TIMEOUT)
            .await
            .map(|_| ())
    }
}

fn check(request: &v1::CreateKeyspaceRequest) -> Result<(), v1::Error> {
    let name = &request.name;
    if name.is_empty() || name.len() > KEYSPACE_NAME_BYTES_MAX || name.chars().any(char::is_control) {
        let message =
            format!("a keyspace name has 1 to {KEYSPACE_NAME_BYTES_MAX} bytes and no control characters");
        return Err(error::invalid("name", message));
    }
    if request.shards > 256 || request.split_keys.len() >= INITIAL_SHARDS_MAX as usize {
        return Err(error::invalid(
            "shards",
            "a keyspace is cut into at most 256 even or 1,024 given pieces",
        ));
    }
    let ascending = request.split_keys.windows(2).all(|pair| pair[0] < pair[1]);
    let sound = request
        .split_keys
        .iter()
        .all(|key| !key.is_empty() && key.len() <= KEY_BYTES_MAX);
    match ascending && sound {
        true => Ok(()),
        false => Err(error::invalid(
            "split_keys",
            "split keys must be ascending, not empty, and within the key limit",
        )),
    }
}

fn cuts(request: &v1::CreateKeyspaceRequest, default_pieces: u32) -> Vec<Bytes> {
    match (request.split_keys.is_empty(), request.shards) {
        (false, _) => request.split_keys.clone(),
        (true, 0) => even_cuts(default_pieces),
        (true, pieces) => even_cuts(pieces),
    }
}

/// Numbers a new keyspace and records how its range will be cut.
fn plan(directory: &mut v1::Directory, cuts: &[Bytes]) -> Result<KeyspaceId, v1::Error> {
    let keyspace_id = next_keyspace_id(directory)?;
    let Some(first_cut) = cuts.first() else {
        return Ok(keyspace_id);
    };
    let parent_end_key = stored_key(keyspace_id, first_cut);
    let parent = shard_of(directory, &parent_end_key)
        .ok_or_else(|| error::internal("the map has a hole"))?
        .clone();
    let mut load = replicas_per_node(directory);
    let mut children = Vec::with_capacity(cuts.len());
    for (position, cut) in cuts.iter().enumerate() {
        let end_key = match cuts.get(position + 1) {
            Some(next) => stored_key(keyspace_id, next),
            None => parent.end_key.clone(),
        };
        let shard_id = directory.next_shard_id;
        directory.next_shard_id += 1;
        children.push(v1::ShardDescriptor {
            shard_id,
            start_key: stored_key(keyspace_id, cut),
            end_key,
            epoch: Some(v1::ShardEpoch {
                conf_version: 0,
                range_version: 1,
            }),
            replicas: spread_least_loaded(&directory.nodes, directory.replicas as usize, &mut load),
            leader_node_id: 0,
        });
    }
    directory.pending_splits.push(v1::PendingSplit {
        parent_shard_id: parent.shard_id,
        parent_end_key,
        children,
    });
    Ok(keyspace_id)
}

/// Keyspace numbers are dealt round over the initial shards' slots, so that small tables spread.
fn next_keyspace_id(directory: &mut v1::Directory) -> Result<KeyspaceId, v1::Error> {
    let dealt = u64::from(directory.next_keyspace_id);
    directory.next_keyspace_id += 1;
    let slots = u64::from(directory.initial_shards.max(1));
    let id = u64::from(slot_start(dealt % slots, slots)) + dealt / slots + 1;
    KeyspaceId::try_from(id).map_err(|_| error::unavailable("no keyspace numbers are left"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(shards: u32) -> v1::Directory {
        let whole = v1::ShardDescriptor {
            shard_id: 2,
            ..Default::default()
        };
        let nodes = (1..=3)
            .map(|node_id| v1::NodeDescriptor {
                node_id,
                ..Default::default()
            })
            .collect();
        v1::Directory {
            initial_shards: shards,
            replicas: 3,
            next_shard_id: 9,
            shards: vec![whole],
            nodes,
            ..Default::default()
        }
    }

    #[test]
    fn keyspace_numbers_are_dealt_over_the_slots_and_never_repeat() {
        let mut directory = directory(8);
        let ids: Vec<_> = (0..32)
            .map(|_| next_keyspace_id(&mut directory).unwrap())
            .collect();
        let distinct: std::collections::BTreeSet<_> = ids.iter().collect();
        assert_eq!(distinct.len(), ids.len());
        assert!(!ids.contains(&0), "the system keyspace is nobody's");
        assert_eq!(ids[1], (1 << 29) + 1);
    }

    #[test]
    fn children_tile_what_the_parent_gives_away() {
        let mut directory = directory(4);
        let cuts = even_cuts(4);
        let id = plan(&mut directory, &cuts).unwrap();
        let split = &directory.pending_splits[0];
        assert_eq!(split.parent_end_key, stored_key(id, &cuts[0]));
        assert_eq!(split.children[0].start_key, split.parent_end_key);
        assert!(
            split
                .children
                .windows(2)
                .all(|pair| pair[0].end_key == pair[1].start_key)
        );
        assert!(
            split.children[2].end_key.is_empty(),
            "the last child ends where the parent did"
        );
        assert_eq!(directory.next_shard_id, 12);
    }
}
