//! sled as the place where checkpoints are kept.
//!
//! sled does not sync what it writes and reuses segments before their successors are durable, so
//! nothing it holds after an unclean stop is believed. A clean stop syncs its files and leaves a
//! file `CLEAN` that names each with its checksum; opening verifies and removes it. Without it
//! the tree is [`TreeError::Unclean`], and the replica is filled from its peers.
//!
//! ```text
//! CLEAN       a checkpoint mark without a position, naming the files of db/
//! db/         sled's folder; keys: 1 + key → record, 0 'c' → control row, 0 'v' → u64 changes, little-endian
//! ```

use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use xxhash_rust::xxh3::xxh3_128;

use super::{Change, Rows, Store, Table, TableEngine, up_to};
use crate::disk::{Disk, Mode, SharedDisk, read_file, write_file_atomically};
use crate::shard::LogId;
use crate::storage::engine::Recovered;
use crate::storage::record::read_u64;
use crate::storage::{EngineKind, FileSum, Mark, TreeError, TreeId};

const CLEAN: &str = "CLEAN";
const DB: &str = "db";
const RECORD_PREFIX: u8 = 1;
const CONTROL_KEY: [u8; 2] = [0, b'c'];
const VERSION_KEY: [u8; 2] = [0, b'v'];
/// sled's own cache; every row is in memory anyway.
const CACHE_BYTES: u64 = 16 << 20;

pub(crate) struct SledStore {
    db: Mutex<Option<sled::Db>>,
    version_id: AtomicU64,
    id: TreeId,
    disk: SharedDisk,
    folder: PathBuf,
}

/// Creates an empty tree in an empty folder.
pub(crate) fn create(disk: &SharedDisk, folder: &Path, id: TreeId) -> Result<Recovered, TreeError> {
    let db = open_sled(&folder.join(DB))?;
    let store = SledStore::new(db, 0, disk, folder, id);
    Ok(TableEngine::recovered(Arc::default(), store, None))
}

/// Opens a tree that was stopped cleanly.
pub(crate) fn open(
    disk: &SharedDisk,
    folder: &Path,
    id: TreeId,
    mark: Option<&Mark>,
) -> Result<Recovered, TreeError> {
    check_clean(&**disk, folder, id)?;
    let db = open_sled(&folder.join(DB))?;
    let (rows, control, version_id) = load(&db)?;
    if let Some(mark) = mark.filter(|mark| version_id < mark.version_id) {
        let position = format!("is at {version_id}, recorded was {}", mark.version_id);
        return Err(TreeError::damaged(DB, position));
    }
    let table = Arc::new(RwLock::new(Table::load(rows)));
    let store = SledStore::new(db, version_id, disk, folder, id);
    Ok(TableEngine::recovered(table, store, control))
}

/// Verifies the proof of a clean stop, and takes it away: the next stop has to leave its own.
fn check_clean(disk: &dyn Disk, folder: &Path, id: TreeId) -> Result<(), TreeError> {
    let path = folder.join(CLEAN);
    let io = |error: &io::Error| TreeError::unreadable(CLEAN, error);
    if !disk.exists(folder).map_err(|error| io(&error))? {
        return Err(TreeError::Missing { tree: id });
    }
    if !disk.exists(&path).map_err(|error| io(&error))? {
        return Err(TreeError::Unclean { tree: id });
    }
    let proof = Mark::decode(&read_file(disk, &path).map_err(|error| io(&error))?)?;
    if proof.tree != id || proof.files != sum_files(disk, folder, false).map_err(|error| io(&error))? {
        return Err(TreeError::damaged(DB, "files are not as a clean stop left them"));
    }
    let removed = disk.remove_file(&path).and_then(|()| disk.sync_dir(folder));
    removed.map_err(|error| TreeError::io(CLEAN, &error))
}

fn open_sled(folder: &Path) -> Result<sled::Db, TreeError> {
    let config = sled::Config::new()
        .path(folder)
        .cache_capacity(CACHE_BYTES)
        .flush_every_ms(None);
    config.open().map_err(sled_error)
}

fn sled_error(error: sled::Error) -> TreeError {
    match error {
        sled::Error::Io(error) => TreeError::io(DB, &error),
        other => TreeError::damaged(DB, other.to_string()),
    }
}

fn load(db: &sled::Db) -> Result<(Rows, Option<Bytes>, u64), TreeError> {
    let (mut rows, mut control, mut version_id) = (Rows::new(), None, 0);
    for item in db.iter() {
        let (key, row) = item.map_err(sled_error)?;
        let row = Bytes::copy_from_slice(&row);
        match &key[..] {
            [RECORD_PREFIX, key @ ..] => {
                rows.insert(Bytes::copy_from_slice(key), row);
            }
            key if *key == CONTROL_KEY => control = Some(row),
            key if *key == VERSION_KEY && row.len() == 8 => version_id = read_u64(&row, 0),
            key => {
                return Err(TreeError::damaged(
                    DB,
                    format!("unknown key {}", key.escape_ascii()),
                ));
            }
        }
    }
    Ok((rows, control, version_id))
}

/// Checksums of sled's files; syncs them too, when asked to.
fn sum_files(disk: &dyn Disk, folder: &Path, sync: bool) -> io::Result<Vec<FileSum>> {
    let mut files = Vec::new();
    let mut folders = vec![DB.to_owned()];
    while let Some(below) = folders.pop() {
        for entry in disk.list(&folder.join(&below))? {
            let name = format!("{below}/{}", entry.name);
            if entry.is_dir {
                folders.push(name);
                continue;
            }
            let path = folder.join(&name);
            if sync {
                disk.open(&path, Mode::Write)?.sync_data()?;
            }
            let data = read_file(disk, &path)?;
            files.push(FileSum {
                name,
                len: data.len() as u64,
                xxh3_128: xxh3_128(&data),
            });
        }
        if sync {
            disk.sync_dir(&folder.join(&below))?;
        }
    }
    Ok(files)
}

fn prefixed(key: &[u8]) -> Vec<u8> {
    [&[RECORD_PREFIX], key].concat()
}

impl SledStore {
    fn new(db: sled::Db, version_id: u64, disk: &SharedDisk, folder: &Path, id: TreeId) -> Self {
        Self {
            db: Mutex::new(Some(db)),
            version_id: AtomicU64::new(version_id),
            id,
            disk: disk.clone(),
            folder: folder.to_owned(),
        }
    }

    fn db(&self) -> Result<sled::Db, TreeError> {
        self.db.lock().clone().ok_or(TreeError::Closed)
    }
}

impl Store for SledStore {
    fn write(&self, change: Change) -> Result<(), TreeError> {
        let db = self.db()?;
        let version_id = self.version_id.load(Ordering::Acquire) + 1;
        let mut batch = sled::Batch::default();
        for (key, row) in &change.rows {
            batch.insert(prefixed(key), &**row);
        }
        for key in &change.dropped {
            batch.remove(prefixed(key));
        }
        if let Some(control) = &change.control {
            batch.insert(&CONTROL_KEY, &**control);
        }
        batch.insert(&VERSION_KEY, &version_id.to_le_bytes());
        db.apply_batch(batch).map_err(sled_error)?;
        db.flush().map_err(sled_error)?;
        self.version_id.store(version_id, Ordering::Release);
        Ok(())
    }

    fn version_id(&self) -> u64 {
        self.version_id.load(Ordering::Acquire)
    }

    fn kept(&self, after: Option<&Bytes>, max_bytes: u64) -> Result<Vec<(Bytes, Bytes)>, TreeError> {
        let from = match after {
            Some(after) => Bound::Excluded(prefixed(after)),
            None => Bound::Included(prefixed(b"")),
        };
        let range = self.db()?.range((from, Bound::Excluded(vec![RECORD_PREFIX + 1])));
        let mut failed = None;
        let rows = range.map_while(|item| match item {
            Ok((key, row)) => Some((Bytes::copy_from_slice(&key[1..]), Bytes::copy_from_slice(&row))),
            Err(error) => {
                failed = Some(sled_error(error));
                None
            }
        });
        let rows = up_to(max_bytes, rows);
        failed.map_or(Ok(rows), Err)
    }

    fn disk_bytes(&self) -> u64 {
        self.db()
            .and_then(|db| db.size_on_disk().map_err(sled_error))
            .unwrap_or(0)
    }

    fn close(&self) -> Result<(), TreeError> {
        let Some(db) = self.db.lock().take() else {
            return Ok(());
        };
        db.flush().map_err(sled_error)?;
        drop(db); // the last handle: sled writes what it still holds
        let io = |error: &io::Error| TreeError::io("closing sled", error);
        let files = sum_files(&*self.disk, &self.folder, true).map_err(|error| io(&error))?;
        let proof = Mark {
            tree: self.id,
            engine: EngineKind::Sled,
            applied: LogId::default(),
            last_version: 0,
            version_id: self.version_id(),
            files,
            contents: Vec::new(),
            tables: Vec::new(),
        };
        let path = self.folder.join(CLEAN);
        write_file_atomically(&*self.disk, &path, &proof.encode()).map_err(|error| io(&error))
    }
}
