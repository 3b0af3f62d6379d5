//! The raw files of a folder, read without the library.
//!
//! ```text
//! current     u64 number N of the file list, u128 xxh3 of vN, u8 0     (little-endian)
//! vN          the file list: see `manifest_file`
//! tables/ID   sorted tables
//! ```

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use xxhash_rust::xxh3::{Xxh3Default, xxh3_128};

use super::manifest_file;
use crate::disk::{Disk, Mode, read_file};
use crate::storage::record::{read_u64, read_u128};
use crate::storage::{FileSum, Mark, TreeError, TreeId};

const CURRENT: &str = "current";
const CURRENT_BYTES: usize = 25;
const READ_BYTES: usize = 1 << 20;

pub(super) fn table_name(table_id: u64) -> String {
    format!("tables/{table_id}")
}

fn list_name(version_id: u64) -> String {
    format!("v{version_id}")
}

/// Proves that a folder is whole and not older than its mark. Returns the number of its file list.
///
/// The library would verify neither `current` nor the file list, and would delete what they do not name.
pub(super) fn check_folder(
    disk: &dyn Disk,
    folder: &Path,
    id: TreeId,
    mark: Option<&Mark>,
) -> Result<u64, TreeError> {
    let exists = disk.exists(&folder.join(CURRENT));
    if !exists.map_err(|error| TreeError::unreadable(CURRENT, &error))? {
        return Err(TreeError::Missing { tree: id });
    }
    let (version_id, list) = read_list(disk, folder)?;
    if let Some(mark) = mark.filter(|mark| version_id < mark.version_id) {
        let position = format!("is at {version_id}, recorded was {}", mark.version_id);
        return Err(TreeError::damaged(CURRENT, position));
    }
    let tables = manifest_file::tables(&list)?;
    list_tables(disk, folder)?;
    for (table_id, xxh3_128) in &tables {
        let name = table_name(*table_id);
        if sum_from_device(disk, folder, &name)?.xxh3_128 != *xxh3_128 {
            return Err(TreeError::damaged(name, "checksum mismatch"));
        }
    }
    if let Some(mark) = mark.filter(|mark| version_id == mark.version_id) {
        let found = sums_of(disk, folder, version_id, tables.into_iter())?;
        compare(&found, &mark.files)?;
    }
    Ok(version_id)
}

/// Reads `current` and the file list it names, and verifies both.
fn read_list(disk: &dyn Disk, folder: &Path) -> Result<(u64, Vec<u8>), TreeError> {
    let current = read(disk, folder, CURRENT)?;
    if current.len() != CURRENT_BYTES || current[CURRENT_BYTES - 1] != 0 {
        return Err(TreeError::damaged(CURRENT, "not of the form expected"));
    }
    let version_id = read_u64(&current, 0);
    let name = list_name(version_id);
    let list = read(disk, folder, &name)?;
    if xxh3_128(&list) != read_u128(&current, 8) {
        return Err(TreeError::damaged(name, "checksum mismatch"));
    }
    Ok((version_id, list))
}

/// Lengths of the tables there are. The library stops at a name that is not a number.
fn list_tables(disk: &dyn Disk, folder: &Path) -> Result<BTreeMap<u64, u64>, TreeError> {
    let entries = disk.list(&folder.join("tables"));
    let entries = entries.map_err(|error| TreeError::unreadable("tables", &error))?;
    let mut lengths = BTreeMap::new();
    for entry in entries {
        match entry.name.parse() {
            Ok(table_id) if !entry.is_dir => lengths.insert(table_id, entry.len_bytes),
            _ => return Err(TreeError::damaged("tables", format!("holds {:?}", entry.name))),
        };
    }
    Ok(lengths)
}

fn compare(found: &[FileSum], recorded: &[FileSum]) -> Result<(), TreeError> {
    let by_name = |files: &[FileSum]| -> BTreeMap<String, (u64, u128)> {
        let sums = files
            .iter()
            .map(|file| (file.name.clone(), (file.len, file.xxh3_128)));
        sums.collect()
    };
    let (found, recorded) = (by_name(found), by_name(recorded));
    for (name, sum) in &recorded {
        if found.get(name) != Some(sum) {
            return Err(TreeError::damaged(name, "not as recorded in the log"));
        }
    }
    if found.len() != recorded.len() {
        return Err(TreeError::damaged(
            "tables",
            "more files than recorded in the log",
        ));
    }
    Ok(())
}

/// The files of one state: `current` and the file list as they are on disk, verified against each
/// other, and the tables by their checksums as written.
pub(super) fn sums_of(
    disk: &dyn Disk,
    folder: &Path,
    version_id: u64,
    tables: impl Iterator<Item = (u64, u128)>,
) -> Result<Vec<FileSum>, TreeError> {
    let (listed, list) = read_list(disk, folder)?;
    if listed != version_id {
        return Err(TreeError::damaged(
            CURRENT,
            format!("is at {listed}, should be at {version_id}"),
        ));
    }
    let current = read(disk, folder, CURRENT)?;
    let sum = |name: String, data: &[u8]| FileSum {
        name,
        len: data.len() as u64,
        xxh3_128: xxh3_128(data),
    };
    let mut files = vec![sum(CURRENT.into(), &current), sum(list_name(version_id), &list)];
    let lengths = list_tables(disk, folder)?;
    for (table_id, xxh3_128) in tables {
        let name = table_name(table_id);
        let Some(&len) = lengths.get(&table_id) else {
            return Err(TreeError::damaged(name, "missing"));
        };
        files.push(FileSum { name, len, xxh3_128 });
    }
    Ok(files)
}

/// Reads a whole file past the operating system's cache.
pub(super) fn sum_from_device(disk: &dyn Disk, folder: &Path, name: &str) -> Result<FileSum, TreeError> {
    let mut hasher = Xxh3Default::new();
    let mut hash = || -> io::Result<u64> {
        let file = disk.open(&folder.join(name), Mode::Read)?;
        file.drop_cached()?;
        let mut buffer = vec![0; READ_BYTES];
        let mut at = 0;
        loop {
            let read = file.read_at(at, &mut buffer)?;
            hasher.update(&buffer[..read]);
            at += read as u64;
            if read < buffer.len() {
                return Ok(at);
            }
        }
    };
    let len = hash().map_err(|error| TreeError::unreadable(name, &error))?;
    Ok(FileSum {
        name: name.to_owned(),
        len,
        xxh3_128: hasher.digest128(),
    })
}

fn read(disk: &dyn Disk, folder: &Path, name: &str) -> Result<Vec<u8>, TreeError> {
    read_file(disk, &folder.join(name)).map_err(|error| TreeError::unreadable(name, &error))
}
