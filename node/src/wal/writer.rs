//! The one writer: gathers what all replicas have queued, writes it as one batch, syncs once,
//! and tells everybody in order.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::carry::bytes_of;
use super::format::{self, BLOCK, Encoded, HEADER_LEN, Record};
use super::log::Shared;
use super::manifest::{self, Manifest};
use super::segment::{self, ALL_RECORDS, Segment, SegmentHeader};
use super::state::{Layout, Place, Written, kind_of, record};
use super::{GroupId, Identity, WalConfig};
use crate::disk::{Mode, SharedDisk, SharedFile, offload, sync_names};
use crate::mutants::Mutant;

/// Called when a piece of work is durable or never will be.
pub(super) type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

/// Records to be written.
#[derive(Default)]
pub(super) struct Work {
    pub records: Vec<Record>,
    /// Waits for nothing: the next batch begins now. What is not forced waits for what is.
    pub forced: bool,
    pub done: Option<Done>,
    pub repair: Option<Repair>,
}

/// Something on the disk is to be written again, elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repair {
    /// All that counts of the segments up to this one, so that they can be deleted.
    Evacuate(u64),
    /// Both copies of the manifest.
    Manifest,
}

/// A batch takes no more work once it holds this many bytes.
const BATCH_BYTES_TARGET: u64 = 8 << 20;
/// Work that forces nothing is written all the same once there is this much of it.
const LAZY_BYTES_MAX: u64 = 1 << 20;

/// The files being written.
pub(super) struct Writer {
    pub shared: Arc<Shared>,
    pub disk: SharedDisk,
    pub dir: PathBuf,
    pub config: WalConfig,
    pub identity: Identity,
    pub queue: mpsc::UnboundedReceiver<Work>,
    pub segment: Option<Segment>,
    /// Length of each segment that counts.
    pub segments: BTreeMap<u64, u64>,
    pub next_batch: u64,
    pub synced: u64,
    pub previous_records: u32,
    pub newest_segment: u64,
    /// Everything up to this segment is being carried forward; 0: nothing is.
    pub evacuate_upto: u64,
}

impl Writer {
    /// Writes until every handle is gone or the log is poisoned.
    pub async fn run(mut self) {
        let mut pending: Vec<Work> = Vec::new();
        let mut marked = true;
        loop {
            let idle = Duration::from_millis(self.config.idle_mark_ms);
            let next = match marked && pending.is_empty() {
                true => self.queue.recv().await,
                false => match tokio::time::timeout(idle, self.queue.recv()).await {
                    Ok(next) => next,
                    Err(_) => {
                        // Idle: what forced nothing is written, and the last batch is marked synced.
                        let outcome = self.write(std::mem::take(&mut pending)).await;
                        marked = true;
                        if outcome.is_err() {
                            return self.drain().await;
                        }
                        continue;
                    }
                },
            };
            let Some(next) = next else {
                if !pending.is_empty() {
                    let _ = self.write(pending).await; // everybody was told
                }
                return;
            };
            pending.push(next);
            let bytes = self.gather(&mut pending);
            if pending.iter().any(|work| work.forced) || bytes > LAZY_BYTES_MAX {
                marked = false;
                if self.write_on(std::mem::take(&mut pending)).await.is_err() {
                    return self.drain().await;
                }
            }
        }
    }

    /// A batch; and while segments are being evacuated, more of them, with what has come meanwhile.
    async fn write_on(&mut self, work: Vec<Work>) -> io::Result<()> {
        self.write(work).await?;
        while self.evacuate_upto > 0 {
            let mut work = Vec::new();
            self.gather(&mut work);
            self.write(work).await?;
        }
        Ok(())
    }

    /// Takes what is queued, up to the size of a batch; returns the bytes of it all.
    fn gather(&mut self, pending: &mut Vec<Work>) -> u64 {
        let mut bytes: u64 = footprint(pending);
        while bytes < BATCH_BYTES_TARGET {
            let Ok(work) = self.queue.try_recv() else { break };
            bytes += work.records.iter().map(Record::footprint).sum::<u64>();
            pending.push(work);
        }
        bytes
    }

    /// One batch: written, synced, told. Nothing is tried again after an error.
    async fn write(&mut self, work: Vec<Work>) -> io::Result<()> {
        let mut records = Vec::new();
        let mut done = Vec::new();
        let mut manifest = false;
        for piece in work {
            records.extend(piece.records);
            done.extend(piece.done);
            match piece.repair {
                Some(Repair::Evacuate(upto)) => self.evacuate_upto = self.evacuate_upto.max(upto),
                Some(Repair::Manifest) => manifest = true,
                None => {}
            }
        }
        let outcome = match self.write_records(records).await {
            Ok(()) if manifest => self.store_manifest().await,
            outcome => outcome,
        };
        self.poison_after(&outcome);
        for tell in done {
            tell(match &outcome {
                Ok(()) => Ok(()),
                Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
            });
        }
        outcome?;
        // Nobody waits for it.
        let outcome = self.lay_out().await;
        self.poison_after(&outcome);
        outcome
    }

    fn poison_after(&self, outcome: &io::Result<()>) {
        if let Err(error) = outcome {
            self.shared.poison(&error.to_string());
            tracing::error!(%error, "the log is poisoned: nothing on its disk is trusted any more");
        }
    }

    /// Writes zeros where the next batches will be, once in a while.
    async fn lay_out(&mut self) -> io::Result<()> {
        let Some(segment) = self.segment.as_mut() else {
            return Ok(());
        };
        let (zeros, file) = (segment.lay_out(), segment.file.clone());
        if zeros.is_empty() {
            return Ok(());
        }
        let write = move || {
            for zeros in zeros {
                file.write_at(zeros.start, &vec![0; (zeros.end - zeros.start) as usize])?;
            }
            file.sync_data()
        };
        offload(&*self.disk, write).await?
    }

    async fn write_records(&mut self, mut records: Vec<Record>) -> io::Result<()> {
        let evacuate_upto = self.evacuate_upto;
        let moving = self.moving();
        let needed = records.iter().map(Record::footprint).sum::<u64>()
            + bytes_of(&moving)
            + 2 * BLOCK
            + 2 * HEADER_LEN as u64;
        let full = |segment: &Segment| segment.free_bytes() < needed || segment.number <= evacuate_upto;
        // Control records first, then what is moved, then what is new: a later record overrules.
        let mut first = match self.segment.as_ref().is_none_or(full) {
            true => self.begin_segment(needed, evacuate_upto > 0).await?,
            false => Vec::new(),
        };
        first.extend(self.moved(moving).await);
        first.append(&mut records);
        let records = first;
        let Some(segment) = self.segment.as_mut() else {
            return Err(io::Error::other("no segment"));
        };
        let encoded = format::encode(
            &records,
            self.next_batch,
            self.synced,
            segment.number,
            segment.data_offset,
        );
        let Encoded {
            batch,
            data,
            identity,
            headers,
        } = encoded;
        let (file, data_at) = (segment.file.clone(), segment.data_offset);
        let identity_at = segment.identity_end - identity.len() as u64;
        assert!(
            data_at + data.len() as u64 <= identity_at,
            "a batch fits its segment"
        );
        segment.data_offset += data.len() as u64;
        segment.identity_end = identity_at;
        let write = move || {
            file.write_at(data_at, &data)?;
            file.write_at(identity_at, &identity)?;
            if Mutant::SkipFsync.is_on() {
                return Ok(());
            }
            match file.sync_data() {
                Err(_) if Mutant::RetryFailedFsync.is_on() => file.sync_data(),
                synced => synced,
            }
        };
        offload(&*self.disk, write).await??;
        let number = segment.number;
        let written = Written {
            batch,
            identity_end: identity_at + u64::from(batch.identity_len),
            torn: false,
        };
        self.synced = batch.number;
        self.next_batch += 1;
        self.previous_records = ALL_RECORDS;
        self.shared
            .batch
            .store(batch.number, std::sync::atomic::Ordering::Release);
        {
            let mut state = self.shared.state.lock();
            let layout = state.layout.entry(number).or_default();
            layout.batches.insert(batch.number, written);
            for header in headers.into_iter().filter(|header| header.kind.is_entry()) {
                state.placed(
                    header.group,
                    Place {
                        segment: number,
                        batch: batch.number,
                        header,
                    },
                );
            }
            state.trim_cache(self.config.tail_cache_bytes);
        }
        self.delete_unneeded().await
    }

    /// Makes the next segment. Its first batch repeats all control records and takes along what
    /// little holds the oldest segment back.
    async fn begin_segment(&mut self, needed: u64, evacuating: bool) -> io::Result<Vec<Record>> {
        let mut records = self.shared.state.lock().control_records();
        if !evacuating {
            records.extend(self.carried().await);
        }
        let first = records.iter().map(Record::footprint).sum::<u64>() + needed;
        let len_bytes = (first + 8 * BLOCK)
            .next_multiple_of(BLOCK)
            .max(self.config.segment_bytes);
        self.newest_segment += 1;
        let header = SegmentHeader {
            identity: self.identity,
            number: self.newest_segment,
            len_bytes,
            first_batch: self.next_batch,
            previous_records: self.previous_records,
            synced: self.synced,
        };
        self.segments.insert(header.number, len_bytes);
        let (disk, dir) = (self.disk.clone(), self.dir.clone());
        let create = move || Segment::create(&*disk, &dir, &header);
        let segment = offload(&*self.disk, create).await??;
        self.store_manifest().await?;
        let layout = Layout {
            header: Some(header),
            ..Layout::default()
        };
        self.shared.state.lock().layout.insert(header.number, layout);
        self.shared
            .files
            .lock()
            .insert(segment.number, segment.file.clone());
        self.count_bytes();
        self.segment = Some(segment);
        Ok(records)
    }

    /// Writes both copies of the manifest. Meanwhile nobody can say what is in them.
    async fn store_manifest(&self) -> io::Result<()> {
        let manifest = self.manifest();
        *self.shared.manifest.lock() = None;
        let (disk, dir) = (self.disk.clone(), self.dir.clone());
        offload(&*self.disk, move || manifest::store(&*disk, &dir, manifest)).await??;
        *self.shared.manifest.lock() = Some(manifest);
        Ok(())
    }

    fn manifest(&self) -> Manifest {
        Manifest {
            oldest: self
                .segments
                .keys()
                .next()
                .copied()
                .unwrap_or(self.newest_segment),
            newest: self.newest_segment,
        }
    }

    /// Deletes the oldest segments as long as no live entry lies in them.
    async fn delete_unneeded(&mut self) -> io::Result<()> {
        let current = self.segment.as_ref().map_or(0, |segment| segment.number);
        let mut unneeded = Vec::new();
        {
            let mut state = self.shared.state.lock();
            while let Some(oldest) = self.segments.keys().next().copied()
                && oldest < current
                && !state.live.contains_key(&oldest)
            {
                self.segments.remove(&oldest);
                unneeded.push(oldest);
            }
            state.layout.retain(|number, _| !unneeded.contains(number));
        }
        if unneeded.is_empty() {
            return Ok(());
        }
        self.count_bytes();
        self.shared
            .files
            .lock()
            .retain(|number, _| !unneeded.contains(number));
        self.store_manifest().await?;
        let (disk, dir) = (self.disk.clone(), self.dir.clone());
        let removed = unneeded.len() as u64;
        let delete = move || {
            for number in unneeded {
                disk.remove_file(&segment::path(&dir, number))?;
            }
            sync_names(&*disk, &dir)
        };
        offload(&*self.disk, delete).await??;
        let count = &self.shared.segments_removed;
        count.fetch_add(removed, std::sync::atomic::Ordering::Relaxed);
        Ok(())
    }

    fn count_bytes(&self) {
        let bytes = self.segments.values().sum();
        self.shared
            .disk_bytes
            .store(bytes, std::sync::atomic::Ordering::Relaxed);
    }

    /// After poisoning: everything that still comes fails.
    async fn drain(&mut self) {
        while let Some(work) = self.queue.recv().await {
            if let Some(done) = work.done {
                done(Err(self.shared.poisoned_error()));
            }
        }
    }
}

fn footprint(work: &[Work]) -> u64 {
    work.iter()
        .flat_map(|work| &work.records)
        .map(Record::footprint)
        .sum()
}

/// Opens the segments recovery found, for reading.
pub(super) fn open_files(
    disk: &SharedDisk,
    dir: &std::path::Path,
    segments: &BTreeMap<u64, u64>,
) -> io::Result<BTreeMap<u64, SharedFile>> {
    segments
        .keys()
        .map(|number| Ok((*number, disk.open(&segment::path(dir, *number), Mode::Read)?)))
        .collect()
}

/// The record of an entry.
pub(super) fn entry_record(id: GroupId, entry: &super::WalEntry) -> Record {
    record(kind_of(entry.kind), id, entry.log_id, entry.payload.clone())
}
