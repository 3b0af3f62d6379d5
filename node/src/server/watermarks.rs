//! What this node remembers of the other nodes: the highest durable batch each has shown of its log, and how
//! new its small files were.
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
//! The small files are the copy of the map and this memory itself. An old copy of one of them costs
//! nothing, as the others tell it again; but it is damage, and is told as such (`Member::compare_files`).
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
use crate::health::{Action, Damage, Health, KeptFile, Kind, Structure};
use crate::raft::transport::{SharedTransport, Transport, TransportError, ViewStream};
use crate::replica::Clocks;
use crate::wal::Wal;

const KEEP_INTERVAL: Duration = Duration::from_secs(1);
const TELL_TIMEOUT: Duration = Duration::from_secs(1);

/// How new the small files of a node are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Versions {
    /// Of the copy of the map.
    pub map: u64,
    /// Of the memory.
    pub memory: u64,
}

impl Versions {
    fn raise(&mut self, shown: Self) {
        self.map = self.map.max(shown.map);
        self.memory = self.memory.max(shown.memory);
    }

    fn of_wire(kept: &v1::KeptFiles) -> Self {
        Self {
            map: kept.map_version,
            memory: kept.memory_version,
        }
    }

    fn to_wire(self, node_id: NodeId) -> v1::KeptFiles {
        v1::KeptFiles {
            node_id,
            map_version: self.map,
            memory_version: self.memory,
        }
    }
}

/// The highest of what a node has shown of its small files, by these messages.
pub(super) fn shown_of(node_id: NodeId, messages: &[v1::WatermarksMessage]) -> Versions {
    let kept = messages.iter().flat_map(|message| &message.kept_files);
    let mut shown = Versions::default();
    for kept in kept.filter(|kept| kept.node_id == node_id) {
        shown.raise(Versions::of_wire(kept));
    }
    shown
}

/// The memory. Invariant: a node's batch never goes down, here or in the file, nor do the versions of its
/// files.
pub(super) struct Watermarks {
    file: Arc<KeptFile>,
    cluster_id: Bytes,
    node_id: NodeId,
    /// The version that was found at the start; 0: there was no file; `None`: a damaged one, which was told.
    found: Option<u64>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    batches: BTreeMap<NodeId, u64>,
    /// Of the other nodes.
    files: BTreeMap<NodeId, Versions>,
    /// Of this node's own file, as it is written.
    version: u64,
    /// Something is known that the file does not say.
    unwritten: bool,
}

impl Watermarks {
    /// What the disk has of this cluster.
    pub fn open(
        disk: SharedDisk,
        path: PathBuf,
        (cluster_id, node_id): (Bytes, NodeId),
        health: &Health,
    ) -> Self {
        let file = KeptFile::new(disk.clone(), path.clone());
        let loaded = sealed::load(&*disk, &path).and_then(|content| {
            // There is none before the first second is over.
            let Some(content) = content else {
                return Ok(v1::WatermarksMessage::default());
            };
            file.found(&sealed::seal(&content));
            match v1::WatermarksMessage::decode(&content[..]) {
                // An earlier release did not say whose it is.
                Ok(stored) if stored.cluster_id == cluster_id && ![0, node_id].contains(&stored.node_id) => {
                    Err((Kind::Foreign, format!("it is node {}'s", stored.node_id)))
                }
                Ok(stored) if stored.cluster_id == cluster_id => Ok(stored),
                Ok(_) => Err((Kind::Foreign, "it is of another cluster".to_owned())),
                Err(error) => Err((Kind::Checksum, error.to_string())),
            }
        });
        let is_whole = loaded.is_ok();
        let stored = loaded.unwrap_or_else(|(kind, what)| {
            let damage = Damage::of_node(Structure::Watermarks, kind, Action::Relearn, what);
            health.repaired_at_once(damage);
            v1::WatermarksMessage::default()
        });
        let marks = stored.watermarks.iter();
        let batches = marks.map(|mark| (mark.node_id, mark.wal_batch));
        let is_own = |kept: &&v1::KeptFiles| kept.node_id == node_id;
        let own = stored.kept_files.iter().find(is_own);
        let version = own.map_or(0, |own| own.memory_version);
        let others = stored.kept_files.iter().filter(|kept| !is_own(kept));
        let files = others.map(|kept| (kept.node_id, Versions::of_wire(kept)));
        let known = Known {
            batches: batches.collect(),
            files: files.collect(),
            version,
            unwritten: !is_whole,
        };
        Self {
            file: Arc::new(file),
            cluster_id,
            node_id,
            found: is_whole.then_some(version),
            known: Mutex::new(known),
        }
    }

    /// The file they are kept in.
    pub fn file(&self) -> &Arc<KeptFile> {
        &self.file
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

    /// All of it, for others, with the version of this node's map.
    pub fn message(&self, map: u64) -> v1::WatermarksMessage {
        let known = self.known.lock();
        let memory = known.version;
        self.encode(&known, Versions { map, memory })
    }

    fn encode(&self, known: &Known, own: Versions) -> v1::WatermarksMessage {
        let mark = |(node_id, wal_batch): (&NodeId, &u64)| v1::Watermark {
            node_id: *node_id,
            wal_batch: *wal_batch,
        };
        v1::WatermarksMessage {
            cluster_id: self.cluster_id.clone(),
            node_id: self.node_id,
            watermarks: known.batches.iter().map(mark).collect(),
            kept_files: known
                .files
                .iter()
                .map(|(node_id, versions)| versions.to_wire(*node_id))
                .chain([own.to_wire(self.node_id)])
                .collect(),
            ..Default::default()
        }
    }

    /// Takes in what another node remembers.
    pub fn learn(&self, message: &v1::WatermarksMessage) {
        for mark in &message.watermarks {
            self.note(mark.node_id, mark.wal_batch);
        }
        let mut known = self.known.lock();
        // It is written with the next batch: nobody's writes are to be the reason for another's.
        for kept in message
            .kept_files
            .iter()
            .filter(|kept| kept.node_id != self.node_id)
        {
            let versions = known.files.entry(kept.node_id).or_default();
            versions.raise(Versions::of_wire(kept));
        }
    }

    /// What was wrong with the file at the start, by what this node had shown of it. From now on it counts on
    /// from there.
    pub fn compare(&self, shown: u64) -> Option<(Kind, String)> {
        let mut known = self.known.lock();
        if shown > known.version {
            known.version = shown;
            known.unwritten = true;
        }
        match outdated(self.found, shown) {
            Some(_) if self.found == Some(0) => Some((Kind::Missing, "the file is missing".to_owned())),
            found => found,
        }
    }

    /// Writes what is new. What cannot be written is tried again with the next.
    pub async fn keep(&self) {
        let (version, content) = {
            let mut known = self.known.lock();
            if !std::mem::take(&mut known.unwritten) {
                return;
            }
            let own = Versions {
                map: 0,
                memory: known.version + 1,
            };
            (own.memory, self.encode(&known, own).encode_to_vec())
        };
        let file = self.file.clone();
        let write = move || file.write(&sealed::seal(&content));
        let written = offload(&**self.file.disk(), write).await;
        let mut known = self.known.lock();
        match written {
            // Not before it is durable: what others are shown must be there after a power cut.
            Ok(Ok(())) => known.version = known.version.max(version),
            Err(error) | Ok(Err(error)) => {
                known.unwritten = true;
                tracing::warn!(%error, "what other nodes have shown could not be written");
            }
        }
    }
}

/// What is wrong with a file of a version when others were shown another; nothing if it was told already.
pub(super) fn outdated(found: Option<u64>, shown: u64) -> Option<(Kind, String)> {
    let found = found.filter(|found| *found < shown)?;
    let what = format!("version {found}, other nodes were shown version {shown}");
    Some((Kind::Outdated, what))
}

/// Keeps the memory on disk and tells the other nodes of it, until told to stop. Nothing is written before the
/// others have said what they were shown: what this run shows would be taken for what an earlier one did.
pub(super) async fn keep_and_tell(member: Arc<Member>, stop: CancellationToken) {
    loop {
        tokio::select! {
            biased;
            () = tokio::time::sleep(KEEP_INTERVAL) => {}
            () = stop.cancelled() => return,
        }
        if member.is_started() {
            member.watermarks.keep().await;
        }
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
    /// What this node remembers and shows. Not its map's version before the others have said what they were
    /// shown of it: a newer one may have been written in this run.
    pub(super) fn memory(&self) -> v1::WatermarksMessage {
        let map_version = match self.is_started() {
            true => self.directory.written_version(),
            false => 0,
        };
        self.watermarks.message(map_version)
    }

    /// Tells another node what this one remembers; returns what that one does.
    pub(super) async fn exchange_watermarks(
        &self,
        addr: &str,
        timeout: Duration,
    ) -> Option<v1::WatermarksMessage> {
        let told = peer_request::Body::Watermarks(self.memory());
        match self.ask(addr, told, timeout).await {
            Ok(peer_response::Body::Watermarks(answer)) => {
                self.watermarks.learn(&answer);
                Some(answer)
            }
            _ => None,
        }
    }

    /// Tells of small files that are older than what this node had shown of them before it was started
    /// again, by what the others remember.
    pub(super) fn compare_files(&self, answers: &[v1::WatermarksMessage]) {
        let shown = shown_of(self.node_id(), answers);
        let found = [
            (Structure::Watermarks, self.watermarks.compare(shown.memory)),
            (
                Structure::Directory,
                outdated(self.directory.found_version(), shown.map),
            ),
        ];
        for (structure, found) in found {
            if let Some((kind, what)) = found {
                let damage = Damage::of_node(structure, kind, Action::Relearn, what);
                self.health.repaired_at_once(damage);
            }
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
    use crate::disk::{Disk, RealDisk, write_file_atomically};

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
        let own = (Bytes::from_static(cluster), 9);
        let watermarks = Watermarks::open(Arc::new(RealDisk), path.to_owned(), own, &health);
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
        again.learn(&watermarks.message(0));
        assert_eq!([1, 2].map(|node| again.of(node)), [7, 6]);
        again.keep().await;
        assert_eq!(open(&path, b"cluster").of(2), 6);
    }

    #[tokio::test]
    async fn an_old_copy_of_the_file_and_a_lost_one_are_known_by_what_others_were_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("watermarks");
        let watermarks = open(&path, b"cluster");
        let mut copies = Vec::new();
        for batch in 1..=3 {
            watermarks.note(1, batch);
            watermarks.keep().await;
            copies.push(crate::disk::read_file(&RealDisk, &path).unwrap());
        }
        let shown = shown_of(9, &[watermarks.message(5), open(&path, b"cluster").message(4)]);
        assert_eq!(shown, Versions { map: 5, memory: 3 });
        let kind = |watermarks: &Watermarks| watermarks.compare(shown.memory).map(|(kind, _)| kind);
        assert_eq!(kind(&open(&path, b"cluster")), None);
        write_file_atomically(&RealDisk, &path, &copies[0]).unwrap();
        let old = open(&path, b"cluster");
        assert_eq!(kind(&old), Some(Kind::Outdated));
        old.keep().await;
        assert_eq!(kind(&open(&path, b"cluster")), None, "it counts on from there");
        RealDisk.remove_file(&path).unwrap();
        assert_eq!(kind(&open(&path, b"cluster")), Some(Kind::Missing));
        let content = v1::WatermarksMessage {
            node_id: 4,
            ..watermarks.message(0)
        };
        sealed::store(&RealDisk, &path, &content.encode_to_vec()).unwrap();
        let (anothers, told) = opened(&path, b"cluster");
        assert_eq!((anothers.of(1), told), (0, vec!["foreign".to_owned()]));
        write_file_atomically(&RealDisk, &path, b"junk").unwrap();
        assert_eq!(kind(&open(&path, b"cluster")), None, "it was told as damaged");
    }

    #[tokio::test]
    async fn what_others_write_is_no_reason_to_write() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("watermarks");
        let watermarks = open(&path, b"cluster");
        let versions = Versions { map: 2, memory: 8 };
        let told = v1::WatermarksMessage {
            kept_files: vec![versions.to_wire(1), versions.to_wire(9)],
            ..Default::default()
        };
        watermarks.learn(&told);
        watermarks.keep().await;
        assert!(!path.exists());
        let message = watermarks.message(0);
        assert_eq!(shown_of(1, std::slice::from_ref(&message)), versions);
        assert_eq!(
            shown_of(9, &[message]),
            Versions::default(),
            "its own it knows best"
        );
        watermarks.note(1, 1);
        watermarks.keep().await;
        assert_eq!(shown_of(1, &[open(&path, b"cluster").message(0)]), versions);
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
