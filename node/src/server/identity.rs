//! Who a node is: its cluster and its number, kept twice.
//!
//! Files `identity.1` and `identity.2` hold the same bytes:
//!
//! ```text
//!  0  8  magic "REELKVID"
//!  8  4  format number, big endian (1)
//! 12 16  cluster id
//! 28  8  node id, big endian
//! 36  4  CRC-32 of bytes 0..36, big endian
//! ```
//!
//! One good copy heals the other. Of two that differ, one is another node's: the log knows which. No good copy
//! beside other data is an amnesiac node: it must not take part under its old number.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::{Disk, SharedDisk, read_file, write_file_atomically};
use crate::health::{KeptFile, Owner};
use crate::wal;

const MAGIC: &[u8; 8] = b"REELKVID";
const FORMAT: u32 = 1;
const LEN: usize = 40;

/// A node's cluster and number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Chosen when the cluster was made.
    pub cluster_id: [u8; 16],
    /// Never reused in the cluster.
    pub node_id: u64,
}

impl From<Identity> for Owner {
    fn from(identity: Identity) -> Self {
        Self {
            cluster_id: identity.cluster_id,
            node_id: identity.node_id,
        }
    }
}

impl From<Identity> for wal::Identity {
    fn from(identity: Identity) -> Self {
        Self {
            cluster_id: identity.cluster_id,
            node_id: identity.node_id,
        }
    }
}

/// Why an identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Written by a newer release: nothing is touched.
    #[error("{path}: written in format {found}, this release reads format {FORMAT}; use a newer release")]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// Its format number.
        found: u32,
    },
    /// The files could not be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the disk said.
        source: io::Error,
    },
}

/// What the two copies said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loaded {
    /// Neither exists.
    None,
    /// At least one is good; `healed` if the other was not and has been rewritten.
    Known { identity: Identity, healed: bool },
    /// Both are good, and they differ.
    Disputed([Identity; 2]),
    /// At least one exists and none is good.
    Damaged,
}

enum Copy {
    Missing,
    Good(Identity),
    Bad,
}

fn paths(dir: &Path) -> [PathBuf; 2] {
    [dir.join("identity.1"), dir.join("identity.2")]
}

fn encode(identity: &Identity) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(LEN);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&FORMAT.to_be_bytes());
    bytes.extend_from_slice(&identity.cluster_id);
    bytes.extend_from_slice(&identity.node_id.to_be_bytes());
    bytes.extend_from_slice(&crc32fast::hash(&bytes).to_be_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Result<Option<Identity>, u32> {
    let Some((body, crc)) = bytes.split_at_checked(LEN - 4) else {
        return Ok(None);
    };
    if crc != crc32fast::hash(body).to_be_bytes() || &body[..8] != MAGIC {
        return Ok(None);
    }
    let field = |from: usize, to: usize| &body[from..to];
    let format = u32::from_be_bytes(field(8, 12).try_into().unwrap_or_default());
    if format > FORMAT {
        return Err(format);
    }
    Ok(Some(Identity {
        cluster_id: field(12, 28).try_into().unwrap_or_default(),
        node_id: u64::from_be_bytes(field(28, 36).try_into().unwrap_or_default()),
    }))
}

fn read_copy(disk: &dyn Disk, path: &Path) -> Result<Copy, IdentityError> {
    match read_file(disk, path) {
        Ok(bytes) => match decode(&bytes) {
            Ok(Some(identity)) => Ok(Copy::Good(identity)),
            Ok(None) => Ok(Copy::Bad),
            Err(found) => Err(IdentityError::NewerFormat {
                path: path.to_owned(),
                found,
            }),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Copy::Missing),
        // A block that cannot be read is damage like any other.
        Err(_) => Ok(Copy::Bad),
    }
}

/// Reads both copies and heals one from the other.
pub(super) fn load(disk: &dyn Disk, dir: &Path) -> Result<Loaded, IdentityError> {
    let loaded = peek(disk, dir)?;
    if let Loaded::Known {
        identity,
        healed: true,
    } = &loaded
    {
        store(disk, dir, identity)?;
    }
    Ok(loaded)
}

/// Reads both copies and changes nothing; `healed` says that one should be.
pub(super) fn peek(disk: &dyn Disk, dir: &Path) -> Result<Loaded, IdentityError> {
    let [first, second] = paths(dir);
    let copies = [read_copy(disk, &first)?, read_copy(disk, &second)?];
    Ok(match copies {
        [Copy::Missing, Copy::Missing] => Loaded::None,
        [Copy::Good(a), Copy::Good(b)] if a == b => Loaded::Known {
            identity: a,
            healed: false,
        },
        // Neither can be told to be the newer: no node ever changes its own.
        [Copy::Good(a), Copy::Good(b)] => Loaded::Disputed([a, b]),
        [Copy::Good(identity), _] | [_, Copy::Good(identity)] => Loaded::Known {
            identity,
            healed: true,
        },
        _ => Loaded::Damaged,
    })
}

/// Of two copies that differ, takes the one whose node the log beside them belongs to, and rewrites the other.
pub(super) fn settle(
    disk: &dyn Disk,
    dir: &Path,
    both: [Identity; 2],
    owns_log: impl Fn(&Identity) -> bool,
) -> Result<Loaded, IdentityError> {
    let identity = match both.each_ref().map(owns_log) {
        [true, false] => both[0],
        [false, true] => both[1],
        // No log, or segments of both nodes.
        _ => return Ok(Loaded::Damaged),
    };
    store(disk, dir, &identity)?;
    Ok(Loaded::Known {
        identity,
        healed: true,
    })
}

/// Both copies, as files that are compared with what they must hold.
pub(super) fn kept(disk: &SharedDisk, dir: &Path, identity: &Identity) -> [Arc<KeptFile>; 2] {
    paths(dir).map(|path| {
        let file = KeptFile::new(disk.clone(), path);
        file.found(&encode(identity));
        Arc::new(file)
    })
}

/// Writes both copies, durably.
pub(super) fn store(disk: &dyn Disk, dir: &Path, identity: &Identity) -> Result<(), IdentityError> {
    let bytes = encode(identity);
    for path in paths(dir) {
        write_file_atomically(disk, &path, &bytes).map_err(|source| IdentityError::Io { path, source })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{Mode, RealDisk};

    const IDENTITY: Identity = Identity {
        cluster_id: [7; 16],
        node_id: 3,
    };

    fn damage(path: &Path, at: u64) {
        let file = RealDisk.open(path, Mode::Write).unwrap();
        let mut byte = [0];
        file.read_at(at, &mut byte).unwrap();
        file.write_at(at, &[byte[0] ^ 0x10]).unwrap();
    }

    #[test]
    fn any_flipped_byte_of_one_copy_is_healed_from_the_other() {
        for at in 0..LEN as u64 {
            let dir = tempfile::tempdir().unwrap();
            store(&RealDisk, dir.path(), &IDENTITY).unwrap();
            damage(&dir.path().join("identity.1"), at);
            let healed = Loaded::Known {
                identity: IDENTITY,
                healed: true,
            };
            assert_eq!(load(&RealDisk, dir.path()).unwrap(), healed, "byte {at}");
            let whole = Loaded::Known {
                identity: IDENTITY,
                healed: false,
            };
            assert_eq!(load(&RealDisk, dir.path()).unwrap(), whole);
        }
    }

    #[test]
    fn two_bad_copies_are_damage_and_none_is_fresh() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load(&RealDisk, dir.path()).unwrap(), Loaded::None);
        store(&RealDisk, dir.path(), &IDENTITY).unwrap();
        damage(&dir.path().join("identity.1"), 3);
        damage(&dir.path().join("identity.2"), 30);
        assert_eq!(load(&RealDisk, dir.path()).unwrap(), Loaded::Damaged);
    }

    #[test]
    fn of_two_copies_that_differ_the_one_that_owns_the_log_is_right() {
        const OTHER: Identity = Identity {
            node_id: 4,
            ..IDENTITY
        };
        let known = |healed| Loaded::Known {
            identity: IDENTITY,
            healed,
        };
        for both in [[IDENTITY, OTHER], [OTHER, IDENTITY]] {
            let dir = tempfile::tempdir().unwrap();
            for (path, identity) in paths(dir.path()).iter().zip(both) {
                write_file_atomically(&RealDisk, path, &encode(&identity)).unwrap();
            }
            let disputed = Loaded::Disputed(both);
            assert_eq!(load(&RealDisk, dir.path()).unwrap(), disputed);
            for owns_log in [true, false] {
                let settled = settle(&RealDisk, dir.path(), both, |_| owns_log).unwrap();
                assert_eq!(settled, Loaded::Damaged, "both own it, or none");
            }
            assert_eq!(
                load(&RealDisk, dir.path()).unwrap(),
                disputed,
                "nothing was changed"
            );
            let settled = settle(&RealDisk, dir.path(), both, |who| *who == IDENTITY).unwrap();
            assert_eq!(settled, known(true));
            assert_eq!(load(&RealDisk, dir.path()).unwrap(), known(false));
        }
    }

    #[test]
    fn a_newer_format_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let mut bytes = encode(&IDENTITY);
        bytes[11] = 2;
        let crc = crc32fast::hash(&bytes[..36]).to_be_bytes();
        bytes[36..].copy_from_slice(&crc);
        for path in paths(dir.path()) {
            write_file_atomically(&RealDisk, &path, &bytes).unwrap();
        }
        assert!(matches!(
            load(&RealDisk, dir.path()),
            Err(IdentityError::NewerFormat { found: 2, .. })
        ));
        assert_eq!(read_file(&RealDisk, &paths(dir.path())[0]).unwrap(), bytes);
    }
}
