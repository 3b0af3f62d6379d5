//! A node's directory as bytes in memory: read once, changed, written back for each case.
#![allow(clippy::disallowed_methods)] // directories at rest: no node has them open

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

/// Everything below a data directory, by path relative to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Files.
    pub files: BTreeMap<String, Arc<Vec<u8>>>,
    /// Directories, the data directory itself left out.
    pub dirs: BTreeSet<String>,
}

impl Snapshot {
    /// Reads a directory that nobody changes.
    ///
    /// # Errors
    /// What cannot be read.
    pub fn read(dir: &Path) -> io::Result<Self> {
        let mut snapshot = Self::default();
        snapshot.read_below(dir, "")?;
        Ok(snapshot)
    }

    fn read_below(&mut self, dir: &Path, prefix: &str) -> io::Result<()> {
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            if entry.file_type()?.is_dir() {
                self.read_below(&entry.path(), &format!("{name}/"))?;
                self.dirs.insert(name);
            } else {
                self.files.insert(name, Arc::new(std::fs::read(entry.path())?));
            }
        }
        Ok(())
    }

    /// Writes it as a new directory.
    ///
    /// # Errors
    /// What cannot be written.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        std::fs::create_dir_all(dir)?;
        for name in &self.dirs {
            std::fs::create_dir_all(dir.join(name))?;
        }
        for (name, bytes) in &self.files {
            std::fs::write(dir.join(name), &bytes[..])?;
        }
        Ok(())
    }

    /// Bytes of a file.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.files.get(name).map(|bytes| &bytes[..])
    }

    /// Gives a file other bytes.
    pub fn put(&mut self, name: &str, bytes: Vec<u8>) {
        self.files.insert(name.to_owned(), Arc::new(bytes));
    }

    /// Removes a directory and what is below it.
    pub fn remove_dir(&mut self, name: &str) {
        let below = format!("{name}/");
        let stays = |path: &String| path != name && !path.starts_with(&below);
        self.files.retain(|path, _| stays(path));
        self.dirs.retain(stays);
    }
}

/// Where cases keep their directories: memory when there is room, else the temporary directory.
/// Removed when dropped, and by [`remove_all_scratch`].
pub struct Scratch {
    path: PathBuf,
}

/// Those of this process.
static SCRATCH: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// Removes the directories of this process, which is about to end.
pub fn remove_all_scratch() {
    SCRATCH.lock().iter().for_each(|path| remove(path));
}

/// A directory in memory is used if it has this much room.
const ROOM_BYTES: u64 = 1 << 30;

impl Scratch {
    /// Makes one.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new() -> io::Result<Self> {
        let memory = Path::new("/dev/shm");
        let room = rustix::fs::statvfs(memory).map_or(0, |stat| stat.f_bavail * stat.f_frsize);
        let parent = match room >= ROOM_BYTES {
            true => memory.to_owned(),
            false => std::env::temp_dir(),
        };
        let path = (0_u32..)
            .map(|number| parent.join(format!("reelkv-matrix-{}-{number}", std::process::id())))
            .find_map(|path| match std::fs::create_dir(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => None,
                made => Some(made.map(|()| path)),
            });
        let path = path.unwrap_or_else(|| Err(io::ErrorKind::AlreadyExists.into()))?;
        SCRATCH.lock().insert(path.clone());
        Ok(Self { path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        remove(&self.path);
        SCRATCH.lock().remove(&self.path);
    }
}

/// Removes a directory in which somebody may still be making files.
pub fn remove(path: &Path) {
    for _ in 0..100 {
        match std::fs::remove_dir_all(path) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_is_written_back_the_same() {
        let scratch = Scratch::new().unwrap();
        let mut snapshot = Snapshot::default();
        snapshot.dirs.extend(["trees".to_owned(), "trees/t".to_owned()]);
        snapshot.put("identity.1", b"me".to_vec());
        snapshot.put("trees/t/current", vec![0; 5_000]);
        let dir = scratch.path().join("n1");
        snapshot.write(&dir).unwrap();
        assert_eq!(Snapshot::read(&dir).unwrap(), snapshot);
        snapshot.remove_dir("trees");
        assert_eq!(snapshot.dirs.len() + snapshot.files.len(), 1);
        let path = scratch.path().to_owned();
        drop(scratch);
        assert!(!path.exists());
    }
}
