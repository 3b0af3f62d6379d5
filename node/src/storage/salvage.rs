//! Saving what is good of a damaged tree.

use bytes::Bytes;

use super::engine::{Found, Remains};
use super::sweep::united;
use super::{BadSpan, Mark, Storage, Tree, TreeError, TreeId};
use crate::shard::LogId;

/// Records copied before others get a turn, in bytes.
const STEP_BYTES: usize = 4 << 20;
/// The new tree is flushed each time it holds this many bytes in memory.
const FLUSH_BYTES: u64 = 32 << 20;

/// A new tree with what was certain in a damaged one, as of the mark's checkpoint.
#[derive(Debug)]
pub struct Salvaged {
    /// The new tree. Its visible version is the mark's last; it is being filled (see
    /// [`Tree::begin_entry`]) until the bad spans are filled too, and it was not sealed.
    pub tree: Tree,
    /// The control state of the mark's checkpoint, if that was certain; else take it from the WAL's record.
    pub control: Option<Bytes>,
    /// Keys that must be fetched from a peer, in key order; the new tree holds none of them. Outside of
    /// these spans it holds every live record, and no other.
    pub bad_spans: Vec<BadSpan>,
    /// Records copied, some of them perhaps deleted ones.
    pub records: u64,
    /// Blocks of the damaged tree that were lost, at most.
    pub lost_blocks: u64,
}

struct Copy {
    tree: Tree,
    remains: Box<dyn Remains>,
    records: u64,
    at_end: bool,
}

impl Copy {
    fn step(mut self) -> Result<Self, TreeError> {
        let mut bytes = 0;
        while bytes < STEP_BYTES {
            let Some(record) = self.remains.next()? else {
                self.at_end = true;
                break;
            };
            self.tree.insert(&record)?;
            bytes += record.payload_bytes();
            self.records += 1;
        }
        Ok(self)
    }
}

impl Storage {
    /// Copies what is certain of the damaged tree that `mark` names into a new one, reading its raw files
    /// block by block. Nothing of the damaged tree is changed. The caller fetches the bad spans, seals and
    /// flushes the new tree, records the switch, and only then removes the old one.
    ///
    /// # Errors
    /// `NotSalvageable` when the engine has nothing to read block by block, `InUse` while the damaged
    /// tree is open. After any error there is no new tree; `Io` means that it could not be written.
    pub async fn salvage(&self, damaged: TreeId, mark: &Mark, into: TreeId) -> Result<Salvaged, TreeError> {
        if mark.tree != damaged || into == damaged {
            let what = format!("salvaging {damaged} by the mark of {} into {into}", mark.tree);
            return Err(TreeError::invalid(what));
        }
        if mark.engine != self.engine() {
            return Err(TreeError::OtherEngine {
                tree: damaged,
                found: mark.engine,
            });
        }
        let _reservation = self.reserve(damaged)?;
        let (backing, disk, root) = (self.backing.clone(), self.disk.clone(), self.root.clone());
        let read_mark = mark.clone();
        let open = move || backing.remains(&*disk, &root, &read_mark);
        let remains = self.run("reading a damaged tree", open).await?;
        let tree = self.create(into).await?;
        tree.begin_entry(mark.last_version);
        tree.publish(mark.last_version);
        let copy = Copy {
            tree,
            remains,
            records: 0,
            at_end: false,
        };
        match self.copy(copy).await {
            Ok(salvaged) => Ok(salvaged),
            Err(error) => {
                let removed = self.remove(into).await;
                if let Err(error) = removed {
                    tracing::warn!(%error, tree = %into, "a half-filled tree could not be removed");
                }
                Err(error)
            }
        }
    }

    async fn copy(&self, mut copy: Copy) -> Result<Salvaged, TreeError> {
        while !copy.at_end {
            copy = self.run("copying records", || copy.step()).await?;
            if copy.tree.memtable_bytes() >= FLUSH_BYTES {
                // On no record yet: a crash forgets it.
                let sealed = copy.tree.seal(&[], LogId::default())?;
                copy.tree.flush(sealed).await?;
            }
        }
        let Found {
            control,
            gaps,
            lost_blocks,
        } = copy.remains.finish();
        Ok(Salvaged {
            tree: copy.tree,
            control,
            bad_spans: united(gaps).into_iter().map(BadSpan::from).collect(),
            records: copy.records,
            lost_blocks,
        })
    }
}
