//! What the benches share: settings that keep the whole set short, keys and values, a disk that does not sync.

#![allow(dead_code)] // each bench uses its part

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use criterion::Criterion;
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};
use reelkv::disk::{DirEntry, Disk, DiskFile, Mode, RealDisk, SharedDisk, SharedFile};
use reelkv_proto::types::stored_key;
use tokio::runtime::Runtime;

/// Bytes per value where a bench does not vary them.
pub const VALUE_BYTES: usize = 256;
/// Keyspace of all keys.
const KEYSPACE: u32 = 1;

/// About two seconds per figure; the command line may ask for longer.
pub fn criterion() -> Criterion {
    Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1_200))
        .sample_size(20)
        .configure_from_args()
}

/// As a node has it.
pub fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime starts")
}

/// Stored key number `n`: 16 bytes spread evenly over the keyspace.
pub fn key(n: u64) -> Bytes {
    let spread = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let user_key = [spread.to_be_bytes(), n.to_be_bytes()].concat();
    stored_key(KEYSPACE, &user_key)
}

/// Nothing on the way can compress it.
pub fn value(value_bytes: usize) -> Bytes {
    let mut value = vec![0; value_bytes];
    SmallRng::seed_from_u64(1).fill_bytes(&mut value);
    value.into()
}

/// The machine's file system with syncs left out: what remains is our own work.
pub fn unsynced_disk() -> SharedDisk {
    Arc::new(Unsynced)
}

#[derive(Debug)]
struct Unsynced;

#[derive(Debug)]
struct UnsyncedFile(SharedFile);

impl Disk for Unsynced {
    fn open(&self, path: &Path, mode: Mode) -> io::Result<SharedFile> {
        let file = RealDisk.open(path, mode)?;
        Ok(Arc::new(UnsyncedFile(file)))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        RealDisk.list(dir)
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        RealDisk.create_dir_all(dir)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealDisk.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove_file(path)
    }

    fn remove_dir_all(&self, dir: &Path) -> io::Result<()> {
        RealDisk.remove_dir_all(dir)
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        RealDisk.exists(path)
    }

    fn lock_dir(&self, dir: &Path) -> io::Result<Box<dyn Send + Sync>> {
        RealDisk.lock_dir(dir)
    }

    fn spawn(&self, job: Box<dyn FnOnce() + Send>) {
        RealDisk.spawn(job);
    }
}

impl DiskFile for UnsyncedFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, data)
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn len_bytes(&self) -> io::Result<u64> {
        self.0.len_bytes()
    }

    fn allocate(&self, len_bytes: u64) -> io::Result<()> {
        self.0.allocate(len_bytes)
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.0.set_len(len_bytes)
    }

    fn drop_cached(&self) -> io::Result<()> {
        self.0.drop_cached()
    }
}
