//! The node's log as a whole: opening it, and the replicas in it.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use super::format::{self, Kind, Record};
use super::group::WalGroup;
use super::manifest::{self, Manifest};
use super::recovery::{Damage, Recovery, recover};
use super::segment;
use super::state::{State, record};
use super::writer::{Done, Work, Writer, open_files};
use super::{GroupId, Identity, WalConfig, WalError};
use crate::disk::{SharedDisk, SharedFile, offload};
use crate::shard::LogId;

/// What handles and writer share. Locks are held for memory only, never across I/O.
pub(super) struct Shared {
    pub state: Mutex<State>,
    pub files: Mutex<BTreeMap<u64, SharedFile>>,
    /// What both copies of the manifest must say; `None` while they are written, and before that.
    pub manifest: Mutex<Option<Manifest>>,
    pub batch: AtomicU64,
    pub disk_bytes: AtomicU64,
    pub segments_removed: AtomicU64,
    poison: OnceLock<String>,
    queue: Mutex<Option<mpsc::UnboundedSender<Work>>>,
    pub disk: SharedDisk,
    pub dir: PathBuf,
}

impl Shared {
    pub fn poison(&self, why: &str) {
        let _ = self.poison.set(why.to_owned()); // the first reason stays
    }

    /// Whether a write or sync has failed.
    pub fn is_poisoned(&self) -> bool {
        self.poison.get().is_some()
    }

    pub fn poisoned_error(&self) -> io::Error {
        let why = self.poison.get().map_or("closed", String::as_str);
        io::Error::other(format!("the log is poisoned: {why}"))
    }

    pub fn send(&self, work: Work) -> io::Result<()> {
        if self.poison.get().is_some() {
            return Err(self.poisoned_error());
        }
        let queue = self.queue.lock();
        let queue = queue
            .as_ref()
            .ok_or_else(|| io::Error::other("the log is closed"))?;
        queue.send(work).map_err(|_| self.poisoned_error())
    }
}

/// The node's log.
#[derive(Clone)]
pub struct Wal {
    pub(super) shared: Arc<Shared>,
    /// Tells when the writer has ended.
    writer: Arc<tokio::sync::Mutex<Option<oneshot::Receiver<()>>>>,
}

impl Wal {
    /// Opens the log of a node, or makes it in an empty directory. Damage is reported, not fatal.
    ///
    /// # Errors
    /// The directory cannot be used, or holds the log of another node or a newer release; nothing
    /// was changed then.
    pub async fn open(
        disk: SharedDisk,
        dir: PathBuf,
        config: WalConfig,
        identity: Identity,
    ) -> Result<(Self, Recovery), WalError> {
        if config.segment_bytes < 64 << 10 || !config.segment_bytes.is_multiple_of(format::BLOCK) {
            return Err(WalError::SegmentSize(config.segment_bytes));
        }
        let io_error = |source: io::Error| WalError::Io {
            path: dir.clone(),
            source,
        };
        let (disk_, dir_) = (disk.clone(), dir.clone());
        let read = move || {
            let io_error = |source: io::Error| WalError::Io {
                path: dir_.clone(),
                source,
            };
            disk_.create_dir_all(&dir_).map_err(io_error)?;
            if let Some(parent) = dir_.parent() {
                disk_.sync_dir(parent).map_err(io_error)?;
            }
            let recovered = recover(&*disk_, &dir_, identity)?;
            let files = open_files(&disk_, &dir_, &recovered.segments).map_err(io_error)?;
            // A process that was killed may have left the last batch in the page cache only; from
            // now on it counts as durable. Only the newest segment was written.
            if let Some((_, newest)) = files.last_key_value() {
                newest.sync_data().map_err(io_error)?;
            }
            Ok((recovered, files))
        };
        let (mut recovered, files) = offload(&*disk, read).await.map_err(io_error)??;
        // Nothing of them counts: they go when all older ones have gone.
        recovered.segments.append(&mut recovered.foreign);
        let (sender, queue) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            state: Mutex::new(recovered.state),
            files: Mutex::new(files),
            batch: AtomicU64::new(recovered.recovery.last_whole_batch),
            disk_bytes: AtomicU64::new(recovered.segments.values().sum()),
            segments_removed: AtomicU64::new(0),
            poison: OnceLock::new(),
            queue: Mutex::new(Some(sender)),
            manifest: Mutex::new(recovered.manifest),
            disk: disk.clone(),
            dir: dir.clone(),
        });
        let writer = Writer {
            shared: shared.clone(),
            disk: disk.clone(),
            dir,
            config,
            identity,
            queue,
            segment: None,
            segments: recovered.segments,
            next_batch: recovered.last_batch + 1,
            synced: recovered.synced,
            previous_records: recovered.last_records,
            newest_segment: recovered.newest_segment,
            evacuate_upto: 0,
        };
        let ended = disk.drive(Box::pin(writer.run()));
        let writer = Arc::new(tokio::sync::Mutex::new(Some(ended)));
        Ok((Self { shared, writer }, recovered.recovery))
    }

    /// Brings a replica to life, durably. `info` is kept for the caller.
    ///
    /// # Errors
    /// The id lived or died here before, or the log is poisoned.
    pub async fn birth(&self, id: GroupId, info: Bytes) -> io::Result<WalGroup> {
        {
            let mut state = self.shared.state.lock();
            if state.dead.contains(&id) || state.groups.contains_key(&id) {
                return Err(io::Error::new(
                    io::ErrorKind::AlreadyExists,
                    format!("{id} was here before"),
                ));
            }
            let group = state.groups.entry(id).or_default();
            group.born = true;
            group.info = info.clone();
        }
        self.force(record(Kind::Birth, id, LogId::default(), info))
            .await?;
        Ok(WalGroup::new(id, self.shared.clone()))
    }

    /// Ends a replica, durably. Its id never lives again.
    ///
    /// # Errors
    /// The log is poisoned.
    pub async fn death(&self, id: GroupId) -> io::Result<()> {
        self.shared.state.lock().bury(id);
        self.force(record(Kind::Death, id, LogId::default(), Bytes::new()))
            .await
    }

    async fn force(&self, record: Record) -> io::Result<()> {
        force(&self.shared, vec![record]).await
    }

    /// A living replica's log.
    pub fn group(&self, id: GroupId) -> Option<WalGroup> {
        let lives = self.shared.state.lock().groups.contains_key(&id);
        lives.then(|| WalGroup::new(id, self.shared.clone()))
    }

    /// All living replicas.
    pub fn groups(&self) -> Vec<GroupId> {
        self.shared.state.lock().groups.keys().copied().collect()
    }

    /// Living replicas whose logs have faulty entries. Cheap while there are none.
    pub fn faulty_groups(&self) -> Vec<GroupId> {
        self.shared.state.lock().faulty_groups()
    }

    /// Number of the last durable batch.
    pub fn batch(&self) -> u64 {
        self.shared.batch.load(Ordering::Acquire)
    }

    /// Bytes of all segments.
    pub fn disk_bytes(&self) -> u64 {
        self.shared.disk_bytes.load(Ordering::Relaxed)
    }

    /// Segments deleted since the start, as nothing in them was needed any more.
    pub fn segments_removed(&self) -> u64 {
        self.shared.segments_removed.load(Ordering::Relaxed)
    }

    /// Whether damage is no more because its segment is none of the log's any more. Never that of the manifest,
    /// which is written again in its place.
    pub fn is_gone(&self, damage: &Damage) -> bool {
        let state = self.shared.state.lock();
        let is_its = |number: &u64| segment::name(*number) == damage.segment;
        damage.segment != manifest::NAME && !state.layout.keys().any(is_its)
    }

    /// Whether a write or sync has failed: nothing is accepted any more.
    pub fn is_poisoned(&self) -> bool {
        self.shared.is_poisoned()
    }

    /// Writes what is queued and stops.
    pub async fn close(&self) {
        self.shared.queue.lock().take();
        let writer = self.writer.lock().await.take();
        if let Some(writer) = writer
            && writer.await.is_err()
        {
            tracing::error!("the log's writer ended badly");
        }
    }
}

pub(super) async fn force(shared: &Shared, records: Vec<Record>) -> io::Result<()> {
    let (sender, durable) = oneshot::channel();
    let done: Done = Box::new(move |result| {
        let _ = sender.send(result); // the caller may have gone
    });
    shared.send(Work {
        records,
        forced: true,
        done: Some(done),
        ..Work::default()
    })?;
    durable.await.map_err(|_| shared.poisoned_error())?
}
