//! What this node remembers of the other nodes' logs: the highest durable batch each has shown.
//!
//! A node's log only ever grows. One that comes back with less than it has shown is not the log it
//! was: its disk forgot, or an old copy of its directory was put back. What it acknowledged may
//! be gone, so it must not vote or acknowledge under its old number again; only the others can
//! tell, and this is their memory (`recall` asks for it).
//!
//! Every message between nodes carries its sender's last batch, so what a node acknowledges is
//! remembered by whoever it tells, at once in memory. Once a second each node writes its memory
//! to its disk and tells the others, so that all know what one of them was shown.
//!
//! File `watermarks` (`sealed`): an encoded `WatermarksMessage`. A damaged one is told and dropped: the
//! others tell it again.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use parking_lot::Mutex;
use prost::Message;
use reelkv_proto::types::NodeId;
use reelkv_proto::v1::{self, peer_request, peer_response};
use tokio_util::sync::CancellationToken;

use super::member::Member;
use super::sealed;
use crate::disk::{SharedDisk, offload};
use crate::health::{Action, Damage, Health, Kind, Structure};
use crate::raft::transport::{SharedTransport, Transport, TransportError, ViewStream};
use crate::replica::Clocks;
use crate::wal::Wal;

const KEEP_INTERVAL: Duration = Duration::from_secs(1);
const TELL_TIMEOUT: Duration = Duration::from_secs(1);

/// The memory. Invariant: a node's batch never goes down, here or in the file.
pub(super) struct Watermarks {
    disk: SharedDisk,
    path: PathBuf,
    cluster_id: Bytes,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    batches: BTreeMap<NodeId, u64>,
    /// Something is known that the file does not say.
    unwritten: bool,
}

impl Watermarks {
    /// What the disk has of this cluster.
    pub fn open(disk: SharedDisk, path: PathBuf, cluster_id: Bytes, health: &Health) -> Self {
        let loaded = sealed::load(&*disk, &path).and_then(|content| {
            // There is none before the first second is over.
            let Some(content) = content else {
                return Ok(v1::WatermarksMessage::default());
            };
            match v1::WatermarksMessage::decode(&content[..]) {
                Ok(stored) if stored.cluster_id == cluster_id => Ok(stored),
                Ok(_) => Err((Kind::Foreign, "it is of another cluster".to_owned())),
                Err(error) => Err((Kind::Checksum, error.to_string())),
            }
        });
        let stored = loaded.unwrap_or_else(|(kind, what)| {
            let damage = Damage::of_node(Structure::Watermarks, kind, Action::Relearn, what);
            health.repaired_at_once(damage);
            v1::WatermarksMessage::default()
        });
        let marks = stored.watermarks.iter();
        let batches = marks.map(|mark| (mark.node_id, mark.wal_batch));
        let known = Known {
            batches: batches.collect(),
            unwritten: false,
        };
        Self {
            disk,
            path,
            cluster_id,
            known: Mutex::new(known),
        }
    }

    /// A node has shown this batch, itself or through others. 0 is none.
    pub fn note(&self, node_id: NodeId, batch: u64) {
        if node_id == 0 || batch == 0 {
            return;
        }
        let mut known = self.known.lock();
        let highest = known.batches.entry(node_id).or_default();
        if batch > *highest {
            *highest = batch;
            known.unwritten = true;
        }
    }

    /// All of it, for others and for the file.
    pub fn message(&self) -> v1::WatermarksMessage {
        let known = self.known.lock();
        let mark = |(node_id, wal_batch): (&NodeId, &u64)| v1::Watermark {
            node_id: *node_id,
            wal_batch: *wal_batch,
        };
        v1::WatermarksMessage {
            cluster_id: self.cluster_id.clone(),
            watermarks: known.batches.iter().map(mark).collect(),
            ..Default::default()
        }
    }

    /// Takes in what another node remembers.
    pub fn learn(&self, message: &v1::WatermarksMessage) {
        for mark in &message.watermarks {
            self.note(mark.node_id, mark.wal_batch);
        }
    }

    /// Writes what is new. What cannot be written is tried again with the next.
    pub async fn keep(&self) {
        if !std::mem::take(&mut self.known.lock().unwritten) {
            return;
        }
        let content = self.message().encode_to_vec();
        let (disk, path) = (self.disk.clone(), self.path.clone());
        let write = move || sealed::store(&*disk, &path, &content);
        let written = offload(&*self.disk, write).await;
        if let Err(error) | Ok(Err(error)) = written {
            self.known.lock().unwritten = true;
            tracing::warn!(%error, "what other nodes' logs have shown could not be written");
        }
    }
}

/// Keeps the memory on disk and tells the other nodes of it, until told to stop.
pub(super) async fn keep_and_tell(member: Arc<Member>, stop: CancellationToken) {
    loop {
        tokio::select! {
            biased;
            () = tokio::time::sleep(KEEP_INTERVAL) => {}
            () = stop.cancelled() => return,
        }
        member.watermarks.keep().await;
        let others = member.others();
        join_all(
            others
                .iter()
                .map(|addr| member.exchange_watermarks(addr, TELL_TIMEOUT)),
        )
        .await;
    }
}

impl Member {
    /// Tells another node what this one remembers; returns what that one does.
    pub(super) async fn exchange_watermarks(
        &self,
        addr: &str,
        timeout: Duration,
    ) -> Option<v1::WatermarksMessage> {
        let told = peer_request::Body::Watermarks(self.watermarks.message());
        match self.ask(addr, told, timeout).await {
            Ok(peer_response::Body::Watermarks(answer)) => {
                self.watermarks.learn(&answer);
                Some(answer)
            }
            _ => None,
        }
    }
}

/// Sends messages that show the node's last batch and clock, and remembers those that answers show.
pub(super) struct Showing {
    pub inner: SharedTransport,
    pub wal: Wal,
    pub watermarks: Arc<Watermarks>,
    pub clocks: Arc<Clocks>,
}

impl Transport for Showing {
    fn call(
        &self,
        addr: &str,
        mut request: v1::PeerRequest,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<v1::PeerResponse, TransportError>> {
        request.wal_batch = self.wal.batch();
        request.wall_ms = self.clocks.own_ms();
        let answer = self.inner.call(addr, request, timeout);
        let (watermarks, clocks) = (self.watermarks.clone(), self.clocks.clone());
        async move {
            let answer = answer.await?;
            watermarks.note(answer.from_node_id, answer.wal_batch);
            clocks.note(answer.from_node_id, answer.wall_ms);
            Ok(answer)
        }
        .boxed()
    }

    fn fetch_view(
        &self,
        addr: &str,
        request: v1::FetchViewRequest,
    ) -> BoxFuture<'static, Result<ViewStream, TransportError>> {
        self.inner.fetch_view(addr, request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{RealDisk, write_file_atomically};

    impl Watermarks {
        /// The highest batch a node has shown; 0 when it is not known.
        fn of(&self, node_id: NodeId) -> u64 {
            self.known
                .lock()
                .batches
                .get(&node_id)
                .copied()
                .unwrap_or_default()
        }
    }

    fn open(path: &std::path::Path, cluster: &'static [u8]) -> Watermarks {
        opened(path, cluster).0
    }

    /// The memory, and the kinds of damage that were told of it, all made good.
    fn opened(path: &std::path::Path, cluster: &'static [u8]) -> (Watermarks, Vec<String>) {
        let health = Health::new(Arc::new(crate::clock::SystemClock));
        let cluster = Bytes::from_static(cluster);
        let watermarks = Watermarks::open(Arc::new(RealDisk), path.to_owned(), cluster, &health);
        assert_eq!(health.open_count(), 0, "{:?}", health.events());
        let told = health.events().into_iter().map(|event| event.kind);
        (watermarks, told.collect())
    }

    #[tokio::test]
    async fn the_highest_batch_is_remembered_across_restarts_and_never_goes_down() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("watermarks");
        let watermarks = open(&path, b"cluster");
        for (node, batch) in [(1, 7), (2, 5), (1, 3), (0, 9), (3, 0)] {
            watermarks.note(node, batch);
        }
        assert_eq!([1, 2, 3].map(|node| watermarks.of(node)), [7, 5, 0]);
        watermarks.keep().await;
        watermarks.note(2, 6); // not written

        let again = open(&path, b"cluster");
        assert_eq!([1, 2].map(|node| again.of(node)), [7, 5]);
        again.learn(&watermarks.message());
        assert_eq!([1, 2].map(|node| again.of(node)), [7, 6]);
        again.keep().await;
        assert_eq!(open(&path, b"cluster").of(2), 6);
    }

    #[tokio::test]
    async fn a_damaged_file_and_one_of_another_cluster_are_told_and_say_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("watermarks");
        let (watermarks, told) = opened(&path, b"cluster");
        assert_eq!(told, Vec::<String>::new());
        watermarks.note(1, 7);
        watermarks.keep().await;
        let (another, told) = opened(&path, b"another");
        assert_eq!((another.of(1), told), (0, vec!["foreign".to_owned()]));
        let mut bytes = crate::disk::read_file(&RealDisk, &path).unwrap();
        bytes[5] ^= 1;
        write_file_atomically(&RealDisk, &path, &bytes).unwrap();
        let (damaged, told) = opened(&path, b"cluster");
        assert_eq!((damaged.of(1), told), (0, vec!["checksum".to_owned()]));
    }
}
