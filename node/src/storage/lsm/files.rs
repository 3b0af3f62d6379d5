//! The raw files of a folder, read without the library.
//!
//! ```text
//! current     u64 number N of the file list, u128 xxh3 of vN, u8 0     (little-endian)
//! vN          the file list: see `manifest_file`
//! tables/ID   sorted tables: see `walk` and `block`
//! ```

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_128;

use super::manifest_file;
use super::reader::{Source, read_whole};
use super::survey::survey;
use crate::disk::{Disk, write_file_atomically};
use crate::storage::mark::CONTENTS_BYTES_MAX;
use crate::storage::record::{read_u64, read_u128};
use crate::storage::{FileContents, FileSum, Mark, TableNote, TreeError, TreeId};

const CURRENT: &str = "current";
const CURRENT_BYTES: usize = 25;
/// How names of tables begin.
pub(super) const TABLES: &str = "tables/";

pub(super) fn table_name(table_id: u64) -> String {
    format!("{TABLES}{table_id}")
}

fn list_name(version_id: u64) -> String {
    format!("v{version_id}")
}

/// A folder that is whole.
#[derive(Debug)]
pub(super) struct Checked {
    /// The number of its file list.
    pub version_id: u64,
    /// What is known of its tables.
    pub notes: BTreeMap<u64, Arc<TableNote>>,
    /// Small files that were put back.
    pub healed: Vec<TreeError>,
}

/// Proves that a folder is whole and not older than its mark, after putting back small files
/// that are damaged, if nothing else is.
///
/// The library would verify neither `current` nor the file list, and would delete what they do not name.
pub(super) fn check_folder(
    disk: &dyn Disk,
    folder: &Path,
    id: TreeId,
    mark: Option<&Mark>,
) -> Result<Checked, TreeError> {
    match (check(disk, folder, id, mark), mark) {
        (Err(error), Some(mark)) if error.sets_tree_aside() => {
            let healed = put_back(disk, folder, mark, error)?;
            let checked = check(disk, folder, id, Some(mark))?;
            Ok(Checked { healed, ..checked })
        }
        (checked, _) => checked,
    }
}

fn check(disk: &dyn Disk, folder: &Path, id: TreeId, mark: Option<&Mark>) -> Result<Checked, TreeError> {
    let exists = disk.exists(&folder.join(CURRENT));
    if !exists.map_err(|error| TreeError::unreadable(CURRENT, &error))? {
        return Err(TreeError::Missing { tree: id });
    }
    let SmallFiles { version_id, list, .. } = read_small(disk, folder)?;
    if let Some(mark) = mark.filter(|mark| version_id < mark.version_id) {
        let position = format!("is at {version_id}, recorded was {}", mark.version_id);
        return Err(TreeError::damaged(CURRENT, position));
    }
    let tables = manifest_file::tables(&list)?;
    list_tables(disk, folder)?;
    let mut notes = BTreeMap::new();
    for (table_id, xxh3_128) in &tables {
        let name = table_name(*table_id);
        let found = survey(disk, folder, &name, Source::Device)?;
        if found.sum.xxh3_128 != *xxh3_128 {
            return Err(TreeError::damaged(name, "checksum mismatch"));
        }
        notes.extend(found.note.map(|note| (*table_id, Arc::new(note))));
    }
    if let Some(mark) = mark.filter(|mark| version_id == mark.version_id) {
        compare(&state(disk, folder, version_id, &tables)?.files, &mark.files)?;
    }
    Ok(Checked {
        version_id,
        notes,
        healed: Vec::new(),
    })
}

/// Puts the small files of the recorded state back. If there was a newer state, it is given up: the log
/// is applied again from the recorded one.
///
/// # Errors
/// `why`, when they are not what is wrong, or a recorded table is not whole. A write that fails.
fn put_back(
    disk: &dyn Disk,
    folder: &Path,
    mark: &Mark,
    why: TreeError,
) -> Result<Vec<TreeError>, TreeError> {
    let is_wrong = |file: &&FileContents| match read_whole(disk, folder, &file.name) {
        Ok(bytes) => bytes != file.bytes,
        Err(_) => true,
    };
    let wrong: Vec<_> = mark.contents.iter().filter(is_wrong).collect();
    let is_whole = |file: &FileSum| -> Result<bool, TreeError> {
        match survey(disk, folder, &file.name, Source::Device) {
            Ok(found) => Ok(found.sum == *file),
            Err(error) if error.sets_tree_aside() => Ok(false),
            Err(error) => Err(error),
        }
    };
    let mut all_whole = !wrong.is_empty();
    for table in mark.files.iter().filter(|file| file.name.starts_with(TABLES)) {
        all_whole = all_whole && is_whole(table)?;
    }
    if !all_whole {
        return Err(why);
    }
    let mut healed = Vec::new();
    for file in wrong {
        let written = write_file_atomically(disk, &folder.join(&file.name), &file.bytes);
        written.map_err(|error| TreeError::io("putting a file back", &error))?;
        healed.push(TreeError::damaged(
            &*file.name,
            format!("{why}; put back as recorded"),
        ));
    }
    Ok(healed)
}

/// `current`, and the file list that it names.
struct SmallFiles {
    version_id: u64,
    current: Bytes,
    list: Bytes,
}

/// Reads both from the device, and verifies them.
fn read_small(disk: &dyn Disk, folder: &Path) -> Result<SmallFiles, TreeError> {
    let current = read_whole(disk, folder, CURRENT)?;
    if current.len() != CURRENT_BYTES || current[CURRENT_BYTES - 1] != 0 {
        return Err(TreeError::damaged(CURRENT, "not of the form expected"));
    }
    let version_id = read_u64(&current, 0);
    let name = list_name(version_id);
    let list = read_whole(disk, folder, &name)?;
    if xxh3_128(&list) != read_u128(&current, 8) {
        return Err(TreeError::damaged(name, "checksum mismatch"));
    }
    Ok(SmallFiles {
        version_id,
        current,
        list,
    })
}

/// Lengths of the tables there are. The library stops at a name that is not a number.
fn list_tables(disk: &dyn Disk, folder: &Path) -> Result<BTreeMap<u64, u64>, TreeError> {
    let entries = disk.list(&folder.join(TABLES));
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

/// The files of one state.
pub(super) struct FilesOfState {
    pub files: Vec<FileSum>,
    /// The small ones whole, unless they are too large for a mark.
    pub contents: Vec<FileContents>,
}

/// The files of one state: `current` and the file list as they are on disk, verified against each
/// other, and the tables by their checksums as written.
pub(super) fn state(
    disk: &dyn Disk,
    folder: &Path,
    version_id: u64,
    tables: &[(u64, u128)],
) -> Result<FilesOfState, TreeError> {
    let small = read_small(disk, folder)?;
    if small.version_id != version_id {
        let position = format!("is at {}, should be at {version_id}", small.version_id);
        return Err(TreeError::damaged(CURRENT, position));
    }
    // The list comes first: put back in this order, `current` never names a list that is not there.
    let contents = [
        (list_name(version_id), small.list),
        (CURRENT.to_owned(), small.current),
    ];
    let mut contents: Vec<_> = contents
        .into_iter()
        .map(|(name, bytes)| FileContents { name, bytes })
        .collect();
    let mut files: Vec<_> = contents
        .iter()
        .map(|file| FileSum {
            name: file.name.clone(),
            len: file.bytes.len() as u64,
            xxh3_128: xxh3_128(&file.bytes),
        })
        .collect();
    if contents.iter().map(|file| file.bytes.len()).sum::<usize>() > CONTENTS_BYTES_MAX {
        contents.clear();
    }
    let lengths = list_tables(disk, folder)?;
    for &(table_id, xxh3_128) in tables {
        let name = table_name(table_id);
        let Some(&len) = lengths.get(&table_id) else {
            return Err(TreeError::damaged(name, "missing"));
        };
        files.push(FileSum { name, len, xxh3_128 });
    }
    Ok(FilesOfState { files, contents })
}
