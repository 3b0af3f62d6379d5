//! The only door to files (the lsm-tree and sled engines apart, which open their own).
//!
//! Calls block; asynchronous code goes through [`offload`]. [`RealDisk`] is the machine's file
//! system, [`sim::SimDisk`] a simulated one with a write-back cache that forgets on a crash.

mod real;
pub mod sim;

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use futures::future::BoxFuture;
pub use real::RealDisk;
use tokio::sync::oneshot;

use crate::mutants::Mutant;

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// An existing file, for reading only.
    Read,
    /// An existing file, for reading and writing.
    Write,
    /// A new file; an existing one is an error.
    CreateNew,
}

/// One name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// Name without the directory.
    pub name: String,
    /// Whether it is a directory itself.
    pub is_dir: bool,
    /// Length in bytes; 0 for a directory.
    pub len_bytes: u64,
}

/// A file system. Names are durable only after [`Disk::sync_dir`] of their directory.
pub trait Disk: fmt::Debug + Send + Sync + 'static {
    /// Opens a file.
    fn open(&self, path: &Path, mode: Mode) -> io::Result<SharedFile>;
    /// Names in a directory, sorted. A missing directory is an error of kind `NotFound`.
    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>>;
    /// Makes a directory and those above it. Durable after the parents' `sync_dir`.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;
    /// Gives a file a new name, replacing what had it.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Removes a directory and what is in it.
    fn remove_dir_all(&self, dir: &Path) -> io::Result<()>;
    /// Makes the names in a directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Whether a file or directory of this name exists.
    fn exists(&self, path: &Path) -> io::Result<bool>;
    /// Takes the exclusive lock of a directory (a file `LOCK` in it) until the guard is dropped.
    /// An error of kind `WouldBlock` means that another process holds it.
    fn lock_dir(&self, dir: &Path) -> io::Result<Box<dyn Send + Sync>>;
    /// Runs a job that calls this disk, without blocking the caller. Called inside a tokio runtime.
    fn spawn(&self, job: Box<dyn FnOnce() + Send>);
    /// Runs a task that does little but call this disk, until it ends; the receiver is told when it has,
    /// and sees its sender dropped if it panicked. Called inside a tokio runtime.
    fn drive(&self, task: BoxFuture<'static, ()>) -> oneshot::Receiver<()> {
        let (ended, told) = oneshot::channel();
        tokio::spawn(async move {
            task.await;
            let _ = ended.send(()); // nobody need care
        });
        told
    }
}

/// An open file. All offsets and lengths are in bytes.
pub trait DiskFile: fmt::Debug + Send + Sync + 'static {
    /// Reads at an offset; returns fewer bytes than asked for only at the end of the file.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize>;
    /// Writes all of `data` at an offset.
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Makes what was written durable (`fdatasync`). After an error nothing on the disk is trusted: never retry.
    fn sync_data(&self) -> io::Result<()>;
    /// The file's length.
    fn len_bytes(&self) -> io::Result<u64>;
    /// Extends the file to at least this length with zeros, reserving the space.
    fn allocate(&self, len_bytes: u64) -> io::Result<()>;
    /// Cuts or extends the file.
    fn set_len(&self, len_bytes: u64) -> io::Result<()>;
    /// Forgets what the operating system has cached, so that the next read comes from the device.
    fn drop_cached(&self) -> io::Result<()>;
}

/// A disk shared by the parts of one node.
pub type SharedDisk = Arc<dyn Disk>;
/// An open file that may be read from several tasks.
pub type SharedFile = Arc<dyn DiskFile>;

/// Runs `job` where blocking does not hurt, and waits for it.
///
/// # Errors
/// Fails when the runtime shuts down before the job has run, or the job panicked.
pub async fn offload<T: Send + 'static>(
    disk: &dyn Disk,
    job: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let (done, result) = oneshot::channel();
    disk.spawn(Box::new(move || {
        // The caller may have gone; the job was run all the same.
        let _ = done.send(job());
    }));
    result
        .await
        .map_err(|_| io::Error::other("disk job was abandoned"))
}

/// Reads a whole file.
pub fn read_file(disk: &dyn Disk, path: &Path) -> io::Result<Vec<u8>> {
    let file = disk.open(path, Mode::Read)?;
    let mut data = vec![0; file.len_bytes()? as usize];
    let read = file.read_at(0, &mut data)?;
    data.truncate(read);
    Ok(data)
}

/// Replaces a file so that after a crash it holds the old bytes or the new ones: writes a
/// temporary file beside it, syncs, renames, syncs the directory.
pub fn write_file_atomically(disk: &dyn Disk, path: &Path, data: &[u8]) -> io::Result<()> {
    let dir = path
        .parent()
        .ok_or_else(|| io::Error::other("a file needs a directory"))?;
    let temporary = path.with_extension("tmp");
    if disk.exists(&temporary)? {
        disk.remove_file(&temporary)?;
    }
    let file = disk.open(&temporary, Mode::CreateNew)?;
    file.write_at(0, data)?;
    file.sync_data()?;
    disk.rename(&temporary, path)?;
    sync_names(disk, dir)
}

/// Makes the names in a directory durable, after files in it were created, renamed or removed.
pub(crate) fn sync_names(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    if Mutant::NoDirFsync.is_on() {
        return Ok(());
    }
    disk.sync_dir(dir)
}
