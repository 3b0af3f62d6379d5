//! Reading a tree's files again in the background, a little at a time.

use std::fmt;

use super::engine::ScrubPass;
use super::{Tree, TreeError, TreeId};

/// How far a scrub has come. [`ScrubCursor::default`] begins a pass.
///
/// A pass reads the files that were the tree's when it began; checkpoints and compactions go on, and the
/// files stay on disk until the pass has ended or the cursor is dropped.
#[derive(Default)]
pub struct ScrubCursor(Option<(TreeId, Box<dyn ScrubPass>)>);

impl fmt::Debug for ScrubCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            None => f.write_str("ScrubCursor(at the beginning)"),
            Some((tree, _)) => write!(f, "ScrubCursor(in {tree})"),
        }
    }
}

/// What one step of a scrub found.
#[derive(Debug)]
pub struct ScrubStep {
    /// Where to go on; at the beginning again when the pass is finished.
    pub cursor: ScrubCursor,
    /// Bytes read from the device.
    pub bytes: u64,
    /// What is damaged among them, by file and place: [`Tree::bad_spans`] tells which keys are concerned.
    /// There may be none: what is damaged may be no record, or one that was replaced since.
    pub bad: Vec<TreeError>,
    /// Whether everything was read.
    pub finished: bool,
}

impl Tree {
    /// Reads the next `max_bytes` (and little more: a block, or a stretch of them) of what the tree has on its
    /// device, past all caches, and compares them with their checksums: block by block, and whole files when
    /// their end is reached. Damage is reported, not returned as an error.
    ///
    /// # Errors
    /// The tree is broken or closed, or the process lacks the means to read: begin again.
    pub async fn scrub_step(&self, cursor: ScrubCursor, max_bytes: u64) -> Result<ScrubStep, TreeError> {
        let inner = self.inner.clone();
        let step = move || {
            let (of, mut pass) = match cursor.0 {
                Some(begun) => begun,
                None => (
                    inner.id,
                    inner.guard("beginning a scrub", || inner.engine.scrub())?,
                ),
            };
            assert_eq!(of, inner.id, "a scrub goes on in the tree it began in");
            let piece = inner.guard("scrubbing", || pass.step(max_bytes.max(1)))?;
            Ok(ScrubStep {
                cursor: ScrubCursor((!piece.finished).then_some((of, pass))),
                bytes: piece.bytes,
                bad: piece.bad,
                finished: piece.finished,
            })
        };
        self.inner.offload("scrubbing", step).await
    }
}
