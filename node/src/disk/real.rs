//! The machine's file system.
#![allow(clippy::disallowed_methods)] // this is the door

use std::cell::Cell;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use futures::future::BoxFuture;
use rustix::fs::{Advice, FallocateFlags, fadvise, fallocate};
use tokio::runtime::Builder;
use tokio::sync::oneshot;

use super::{DirEntry, Disk, DiskFile, Mode, SharedFile};

/// The machine's file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

#[derive(Debug)]
struct RealFile(File);

thread_local! {
    /// Whether this thread is there for one task that may block it.
    static OWN_THREAD: Cell<bool> = const { Cell::new(false) };
}

impl Disk for RealDisk {
    fn open(&self, path: &Path, mode: Mode) -> io::Result<SharedFile> {
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(mode != Mode::Read)
            .create_new(mode == Mode::CreateNew);
        Ok(Arc::new(RealFile(options.open(path)?)))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        let mut entries = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            entries.push(DirEntry {
                name: entry.file_name().to_string_lossy().into_owned(),
                is_dir: metadata.is_dir(),
                len_bytes: if metadata.is_dir() { 0 } else { metadata.len() },
            });
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        std::fs::create_dir_all(dir)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn remove_dir_all(&self, dir: &Path) -> io::Result<()> {
        std::fs::remove_dir_all(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        path.try_exists()
    }

    fn lock_dir(&self, dir: &Path) -> io::Result<Box<dyn Send + Sync>> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(dir.join("LOCK"))?;
        match file.try_lock() {
            Ok(()) => Ok(Box::new(file)),
            Err(TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn spawn(&self, job: Box<dyn FnOnce() + Send>) {
        match OWN_THREAD.get() {
            true => job(),
            false => drop(tokio::task::spawn_blocking(job)),
        }
    }

    /// On a thread of its own, where jobs need not be handed to another and back.
    fn drive(&self, task: BoxFuture<'static, ()>) -> oneshot::Receiver<()> {
        let (ended, told) = oneshot::channel();
        let own = Builder::new_current_thread().enable_time().build();
        let started = own.and_then(|runtime| {
            let run = move || {
                OWN_THREAD.set(true);
                runtime.block_on(task);
                let _ = ended.send(()); // nobody need care
            };
            thread::Builder::new().name("log".to_owned()).spawn(run)
        });
        if let Err(error) = started {
            tracing::error!(%error, "no thread for the log could be started: nothing can be written");
        }
        told
    }
}

impl DiskFile for RealFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match self.0.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_all_at(data, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn len_bytes(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn allocate(&self, len_bytes: u64) -> io::Result<()> {
        match fallocate(&self.0, FallocateFlags::empty(), 0, len_bytes) {
            Ok(()) => Ok(()),
            // Some file systems reserve nothing; the length is what later writes rely on.
            Err(rustix::io::Errno::OPNOTSUPP) if self.len_bytes()? < len_bytes => self.0.set_len(len_bytes),
            Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.0.set_len(len_bytes)
    }

    fn drop_cached(&self) -> io::Result<()> {
        Ok(fadvise(&self.0, 0, None, Advice::DontNeed)?)
    }
}
