//! A simulated disk: files in memory behind a write-back cache that a power cut forgets.
//!
//! What may go wrong besides is in [`faults`].
//!
//! What a file system promises and no more: bytes are durable after `sync_data`, names after
//! `sync_dir`. At a power cut each unsynced write is kept, lost or torn (any subset of its
//! sectors); names that were not synced are kept up to some point and lost after it. The rest is
//! decided by a seed. Directories themselves are durable at once.

mod faults;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::{DirEntry, Disk, DiskFile, Mode, SharedDisk, SharedFile};
use faults::Faults;
pub use faults::Refused;

/// Unit that is written whole or not at all, in bytes.
const SECTOR: usize = 512;

#[derive(Clone, Debug)]
enum Change {
    Write { offset: usize, data: Vec<u8> },
    Resize { len: usize },
}

impl Change {
    /// The length it makes a file have at least.
    fn end(&self) -> usize {
        match self {
            Self::Write { offset, data } => offset + data.len(),
            Self::Resize { len } => *len,
        }
    }

    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write { offset, data } => write(bytes, *offset, data),
            Self::Resize { len } => bytes.resize(*len, 0),
        }
    }
}

/// Invariant: `current` is `durable` with `unsynced` applied, except for what a failed sync lost.
#[derive(Clone, Debug, Default)]
struct Inode {
    durable: Vec<u8>,
    current: Vec<u8>,
    unsynced: Vec<Change>,
}

#[derive(Clone, Debug)]
enum NameChange {
    Set(PathBuf, u64),
    Remove(PathBuf),
    /// A directory with all that is in it: one name changes, none below it.
    MoveDir(PathBuf, PathBuf),
}

impl NameChange {
    fn path(&self) -> &Path {
        match self {
            Self::Set(path, _) | Self::Remove(path) | Self::MoveDir(path, _) => path,
        }
    }

    fn apply(&self, names: &mut BTreeMap<PathBuf, u64>) {
        match self {
            Self::Set(path, inode) => drop(names.insert(path.clone(), *inode)),
            Self::Remove(path) => drop(names.remove(path)),
            Self::MoveDir(from, to) => {
                let all = std::mem::take(names).into_iter();
                names.extend(all.map(|(path, inode)| (moved(&path, from, to).unwrap_or(path), inode)));
            }
        }
    }

    /// The same change once the directory it is in has moved.
    fn follow(&mut self, from: &Path, to: &Path) {
        let (Self::Set(path, _) | Self::Remove(path) | Self::MoveDir(path, _)) = self;
        if let Some(target) = moved(path, from, to) {
            *path = target;
        }
    }
}

/// Where something is after a directory above it has moved; `None` if none has.
fn moved(path: &Path, from: &Path, to: &Path) -> Option<PathBuf> {
    path.strip_prefix(from).map(|rest| to.join(rest)).ok()
}

#[derive(Debug)]
struct State {
    inodes: BTreeMap<u64, Inode>,
    names: BTreeMap<PathBuf, u64>,
    durable_names: BTreeMap<PathBuf, u64>,
    name_changes: Vec<NameChange>,
    dirs: BTreeSet<PathBuf>,
    locked: BTreeSet<PathBuf>,
    next_inode: u64,
    /// Grows at each power cut; what was mounted before reaches nothing any more.
    boot: u64,
    operations: u64,
    syncs: u64,
    faults: Faults,
    rng: SmallRng,
}

/// The device; it outlives the machines that mount it.
#[derive(Clone, Debug)]
pub struct SimDisk(Arc<Mutex<State>>);

/// The device as one life of a machine sees it.
#[derive(Clone, Debug)]
struct Mounted {
    disk: SimDisk,
    boot: u64,
}

#[derive(Debug)]
struct SimFile {
    mounted: Mounted,
    inode: u64,
}

fn power_lost() -> io::Error {
    io::Error::other("the machine has lost its power")
}

impl SimDisk {
    /// An empty device.
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            inodes: BTreeMap::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            name_changes: Vec::new(),
            dirs: BTreeSet::new(),
            locked: BTreeSet::new(),
            next_inode: 1,
            boot: 0,
            operations: 0,
            syncs: 0,
            faults: Faults::default(),
            rng: SmallRng::seed_from_u64(seed),
        })))
    }

    /// The device for one life of a machine, until the next power cut.
    pub fn mount(&self) -> SharedDisk {
        let boot = self.0.lock().boot;
        Arc::new(Mounted {
            disk: self.clone(),
            boot,
        })
    }

    /// Cuts the power.
    pub fn crash(&self, seed: u64) {
        let state = &mut *self.0.lock();
        let mut rng = SmallRng::seed_from_u64(seed);
        state.boot += 1;
        state.faults.end_of_life();
        state.locked.clear();
        for inode in state.inodes.values_mut() {
            for change in std::mem::take(&mut inode.unsynced) {
                settle(&mut inode.durable, &change, &mut rng);
            }
            inode.current = inode.durable.clone();
        }
        let kept = rng.random_range(0..=state.name_changes.len());
        for change in state.name_changes.drain(..).take(kept) {
            change.apply(&mut state.durable_names);
        }
        state.names = state.durable_names.clone();
        // A directory whose move was lost is where it was.
        let above = state.names.keys().flat_map(|path| path.ancestors().skip(1));
        state.dirs.extend(above.map(Path::to_owned));
    }

    /// Lets this many more operations happen; all later ones fail until the next [`SimDisk::crash`].
    pub fn power_off_after(&self, operations: u64) {
        let mut state = self.0.lock();
        state.faults.power_off_after = Some(state.operations + operations);
    }

    /// Lets this many more syncs succeed; the next one fails and loses what it should have written.
    pub fn fail_syncs_after(&self, syncs: u64) {
        let mut state = self.0.lock();
        state.faults.fail_syncs_after = Some(state.syncs + syncs);
    }

    /// Lets this share of all reads fail, in parts per thousand, until told otherwise.
    pub fn fail_reads(&self, per_mille: u32) {
        self.0.lock().faults.fail_reads_per_mille = per_mille;
    }

    /// Fills the device up, or makes room again: nothing grows while it is full.
    pub fn fill_up(&self, full: bool) {
        self.0.lock().faults.is_full = full;
    }

    /// Makes every job take up to this long; `None` for a healthy device.
    pub fn slow_down(&self, latency_max: Option<Duration>) {
        self.0.lock().faults.latency_max = latency_max;
    }

    /// What the device has refused or delayed so far.
    pub fn refused(&self) -> Refused {
        self.0.lock().faults.refused
    }

    /// Whether [`SimDisk::power_off_after`] has come true.
    pub fn is_off(&self) -> bool {
        let state = self.0.lock();
        state.faults.is_off(state.operations)
    }

    /// Operations that changed something so far.
    pub fn operations(&self) -> u64 {
        self.0.lock().operations
    }

    /// Syncs of files so far.
    pub fn syncs(&self) -> u64 {
        self.0.lock().syncs
    }

    /// Flips bits of a file at rest. False when there is no such byte.
    pub fn corrupt(&self, path: &Path, offset: usize, mask: u8) -> bool {
        self.edit(path, |bytes| match bytes.get_mut(offset) {
            Some(byte) => {
                *byte ^= mask;
                true
            }
            None => false,
        })
    }

    /// Cuts a file at rest.
    pub fn cut(&self, path: &Path, len: usize) -> bool {
        self.edit(path, |bytes| {
            bytes.truncate(len);
            true
        })
    }

    /// Overwrites a file at rest with zeros.
    pub fn zero(&self, path: &Path) -> bool {
        self.edit(path, |bytes| {
            bytes.fill(0);
            true
        })
    }

    /// Loses a file at rest.
    pub fn lose(&self, path: &Path) -> bool {
        let mut state = self.0.lock();
        state.durable_names.remove(path);
        state.names.remove(path).is_some()
    }

    fn edit(&self, path: &Path, change: impl Fn(&mut Vec<u8>) -> bool) -> bool {
        let mut state = self.0.lock();
        let Some(inode) = state.names.get(path).copied() else {
            return false;
        };
        let Some(inode) = state.inodes.get_mut(&inode) else {
            return false;
        };
        change(&mut inode.durable) && change(&mut inode.current)
    }

    /// Files and their lengths.
    pub fn files(&self) -> Vec<(PathBuf, usize)> {
        let state = self.0.lock();
        let len = |inode: &u64| state.inodes.get(inode).map_or(0, |inode| inode.current.len());
        state
            .names
            .iter()
            .map(|(path, inode)| (path.clone(), len(inode)))
            .collect()
    }

    /// Files and what is in them.
    pub fn contents(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let state = self.0.lock();
        let bytes = |inode: &u64| {
            state
                .inodes
                .get(inode)
                .map_or_else(Vec::new, |inode| inode.current.clone())
        };
        state
            .names
            .iter()
            .map(|(path, inode)| (path.clone(), bytes(inode)))
            .collect()
    }

    /// Another device with the same durable content.
    pub fn copy(&self, seed: u64) -> Self {
        let copy = Self::new(seed);
        {
            let (from, mut to) = (self.0.lock(), copy.0.lock());
            to.inodes = from.inodes.clone();
            to.names = from.names.clone();
            to.durable_names = from.durable_names.clone();
            to.name_changes = from.name_changes.clone();
            to.dirs = from.dirs.clone();
            to.next_inode = from.next_inode;
        }
        copy
    }
}

/// What a power cut makes of one unsynced change.
fn settle(durable: &mut Vec<u8>, change: &Change, rng: &mut SmallRng) {
    match (change, rng.random_range(0..3)) {
        (_, 0) => {}
        (Change::Resize { len }, _) => durable.resize(*len, 0),
        (Change::Write { offset, data }, 1) => write(durable, *offset, data),
        (Change::Write { offset, data }, _) => {
            // Torn: sector by sector.
            let mut from = 0;
            while from < data.len() {
                let to = (from + SECTOR - (offset + from) % SECTOR).min(data.len());
                if rng.random() {
                    write(durable, offset + from, &data[from..to]);
                }
                from = to;
            }
        }
    }
}

fn write(bytes: &mut Vec<u8>, offset: usize, data: &[u8]) {
    let end = offset + data.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[offset..end].copy_from_slice(data);
}

impl Mounted {
    /// Runs `look` on the state of a machine that is on.
    fn with<T>(&self, look: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.disk.0.lock();
        let off = state.faults.is_off(state.operations);
        match state.boot == self.boot && !off {
            true => look(&mut state),
            false => Err(power_lost()),
        }
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        self.with(|state| {
            state.operations += 1;
            change(state)
        })
    }
}

impl Disk for Mounted {
    fn open(&self, path: &Path, mode: Mode) -> io::Result<SharedFile> {
        let inode = match mode {
            Mode::CreateNew => self.change(|state| {
                state.faults.room_for(true)?;
                if state.names.contains_key(path) {
                    return Err(io::ErrorKind::AlreadyExists.into());
                }
                let inode = state.next_inode;
                state.next_inode += 1;
                state.inodes.insert(inode, Inode::default());
                state.names.insert(path.to_owned(), inode);
                state.name_changes.push(NameChange::Set(path.to_owned(), inode));
                Ok(inode)
            })?,
            _ => self.with(|state| {
                state
                    .names
                    .get(path)
                    .copied()
                    .ok_or(io::ErrorKind::NotFound.into())
            })?,
        };
        Ok(Arc::new(SimFile {
            mounted: self.clone(),
            inode,
        }))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        self.with(|state| {
            if !state.dirs.contains(dir) {
                return Err(io::ErrorKind::NotFound.into());
            }
            let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
            let files = state
                .names
                .iter()
                .filter(|(path, _)| path.parent() == Some(dir))
                .filter_map(|(path, inode)| {
                    let len_bytes = state
                        .inodes
                        .get(inode)
                        .map_or(0, |inode| inode.current.len() as u64);
                    Some(DirEntry {
                        name: name(path)?,
                        is_dir: false,
                        len_bytes,
                    })
                });
            let dirs = state.dirs.iter().filter(|path| path.parent() == Some(dir));
            let dirs = dirs.filter_map(|path| {
                Some(DirEntry {
                    name: name(path)?,
                    is_dir: true,
                    len_bytes: 0,
                })
            });
            let mut entries: Vec<_> = files.chain(dirs).collect();
            entries.sort_by(|a, b| a.name.cmp(&b.name));
            Ok(entries)
        })
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.with(|state| {
            state.dirs.extend(dir.ancestors().map(Path::to_owned));
            Ok(())
        })
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.change(|state| {
            if state.dirs.contains(from) {
                return rename_dir(state, from, to);
            }
            let inode = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
            state.names.insert(to.to_owned(), inode);
            // One step for the file system: after a power cut both or neither.
            state.name_changes.push(NameChange::Set(to.to_owned(), inode));
            state.name_changes.push(NameChange::Remove(from.to_owned()));
            Ok(())
        })
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.change(|state| {
            state.names.remove(path).ok_or(io::ErrorKind::NotFound)?;
            state.name_changes.push(NameChange::Remove(path.to_owned()));
            Ok(())
        })
    }

    fn remove_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.change(|state| {
            let below: Vec<PathBuf> = state
                .names
                .keys()
                .filter(|path| path.starts_with(dir))
                .cloned()
                .collect();
            for path in below {
                state.names.remove(&path);
                state.name_changes.push(NameChange::Remove(path));
            }
            state.dirs.retain(|path| !path.starts_with(dir));
            Ok(())
        })
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.change(|state| {
            let mut elsewhere: Vec<NameChange> = Vec::new();
            for change in std::mem::take(&mut state.name_changes) {
                if change.path().parent() != Some(dir) {
                    elsewhere.push(change);
                    continue;
                }
                change.apply(&mut state.durable_names);
                if let NameChange::MoveDir(from, to) = &change {
                    elsewhere.iter_mut().for_each(|earlier| earlier.follow(from, to));
                }
            }
            state.name_changes = elsewhere;
            Ok(())
        })
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.with(|state| Ok(state.names.contains_key(path) || state.dirs.contains(path)))
    }

    fn lock_dir(&self, dir: &Path) -> io::Result<Box<dyn Send + Sync>> {
        self.with(|state| match state.locked.insert(dir.to_owned()) {
            true => Ok(()),
            false => Err(io::ErrorKind::WouldBlock.into()),
        })?;
        Ok(Box::new(DirLock {
            mounted: self.clone(),
            dir: dir.to_owned(),
        }))
    }

    fn spawn(&self, job: Box<dyn FnOnce() + Send>) {
        let latency = {
            let state = &mut *self.disk.0.lock();
            state.faults.latency(&mut state.rng)
        };
        tokio::spawn(async move {
            tokio::time::sleep(latency).await;
            job();
        });
    }
}

fn rename_dir(state: &mut State, from: &Path, to: &Path) -> io::Result<()> {
    let change = NameChange::MoveDir(from.to_owned(), to.to_owned());
    change.apply(&mut state.names);
    state.name_changes.push(change);
    let dirs = std::mem::take(&mut state.dirs).into_iter();
    state
        .dirs
        .extend(dirs.map(|dir| moved(&dir, from, to).unwrap_or(dir)));
    Ok(())
}

struct DirLock {
    mounted: Mounted,
    dir: PathBuf,
}

impl Drop for DirLock {
    fn drop(&mut self) {
        // After a power cut the lock is gone already.
        let _ = self.mounted.with(|state| Ok(state.locked.remove(&self.dir)));
    }
}

impl SimFile {
    fn with<T>(&self, look: impl FnOnce(&mut Inode) -> io::Result<T>) -> io::Result<T> {
        self.mounted
            .with(|state| look(state.inodes.get_mut(&self.inode).ok_or(io::ErrorKind::NotFound)?))
    }

    fn change(&self, change: Change) -> io::Result<()> {
        self.mounted.change(|state| {
            let inode = state.inodes.get_mut(&self.inode).ok_or(io::ErrorKind::NotFound)?;
            state
                .faults
                .room_for(change.end() > inode.current.len().max(inode.durable.len()))?;
            change.apply(&mut inode.current);
            inode.unsynced.push(change);
            Ok(())
        })
    }
}

impl DiskFile for SimFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.mounted.with(|state| state.faults.read(&mut state.rng))?;
        self.with(|inode| {
            let from = (offset as usize).min(inode.current.len());
            let read = buf.len().min(inode.current.len() - from);
            buf[..read].copy_from_slice(&inode.current[from..from + read]);
            Ok(read)
        })
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.change(Change::Write {
            offset: offset as usize,
            data: data.to_vec(),
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.mounted.change(|state| {
            state.syncs += 1;
            let inode = state.inodes.get_mut(&self.inode).ok_or(io::ErrorKind::NotFound)?;
            let unsynced = std::mem::take(&mut inode.unsynced);
            // As Linux does: the pages of a failed sync count as clean, so the next one succeeds
            // without them, and what they held is gone at the next boot.
            state.faults.sync(state.syncs)?;
            for change in unsynced {
                change.apply(&mut inode.durable);
            }
            Ok(())
        })
    }

    fn len_bytes(&self) -> io::Result<u64> {
        self.with(|inode| Ok(inode.current.len() as u64))
    }

    fn allocate(&self, len_bytes: u64) -> io::Result<()> {
        match self.len_bytes()? < len_bytes {
            true => self.set_len(len_bytes),
            false => Ok(()),
        }
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.change(Change::Resize {
            len: len_bytes as usize,
        })
    }

    fn drop_cached(&self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
