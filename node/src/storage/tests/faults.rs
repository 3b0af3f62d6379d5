//! Engines that panic, lie or fail: contained by the tree above them.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::storage::checkpoint::Position;
use crate::storage::engine::{Engine, Gap, Manifest, ScrubPass};
use crate::storage::tree::TreeInner;

/// Flushes tried, by the one test that flushes.
static FLUSHES: AtomicU32 = AtomicU32::new(0);

/// An engine that does one thing badly.
#[derive(Clone, Copy, PartialEq)]
enum Bad {
    PanicsOnRead,
    AnswersForAnotherKey,
    AnswersFromTheFuture,
    ScansBackwards,
    FailsToFlush,
}

impl Engine for Bad {
    fn begin_entry(&self, _: u64) {}

    fn insert(&self, _: &[u8], _: u64, row: Bytes) -> Result<u64, TreeError> {
        Ok(row.len() as u64)
    }

    fn get(&self, _: &[u8], _: u64) -> Result<Option<Bytes>, TreeError> {
        match self {
            Self::PanicsOnRead => panic!("lock is poisoned"),
            Self::AnswersFromTheFuture => Ok(Some(record("a", 99, Some("1")).encode())),
            _ => Ok(Some(record("another", 1, Some("1")).encode())),
        }
    }

    fn visit(
        &self,
        _: &[u8],
        _: &[u8],
        _: u64,
        each: &mut dyn FnMut(Bytes, Bytes) -> ControlFlow<()>,
    ) -> Result<(), TreeError> {
        for key in ["b", "a"] {
            let record = record(key, 1, Some("1"));
            if each(record.key.clone(), record.encode()).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn gaps(&self) -> Result<Vec<Gap>, TreeError> {
        Ok(Vec::new())
    }

    fn seal(&self, _: Bytes) -> Result<(), TreeError> {
        Ok(())
    }

    fn sealed_count(&self) -> usize {
        1
    }

    fn flush(&self, _: u64) -> Result<(), TreeError> {
        FLUSHES.fetch_add(1, Ordering::Relaxed);
        Err(TreeError::io(
            "flushing",
            &std::io::Error::from_raw_os_error(libc::EIO),
        ))
    }

    fn compact(&self, _: u64, _: bool) -> Result<bool, TreeError> {
        Ok(false)
    }

    fn forget(&self, _: u64) -> Result<(), TreeError> {
        Ok(())
    }

    fn manifest(&self) -> Result<Manifest, TreeError> {
        Ok(Manifest {
            version_id: 1,
            ..Manifest::default()
        })
    }

    fn verify_files(&self) -> Result<(u64, Vec<TreeError>), TreeError> {
        Ok((0, Vec::new()))
    }

    fn scrub(&self) -> Result<Box<dyn ScrubPass>, TreeError> {
        panic!("no test scrubs it")
    }

    fn disk_bytes(&self) -> u64 {
        0
    }

    fn close(&self) -> Result<(), TreeError> {
        Ok(())
    }
}

fn tree(bad: Bad) -> Tree {
    let inner = TreeInner::new(
        ID,
        EngineKind::Lsm,
        Box::new(bad),
        Arc::new(RealDisk),
        Position::default(),
        Arc::default(),
    );
    let tree = Tree::from_inner(Arc::new(inner));
    tree.begin_entry(5);
    tree.publish(5);
    tree
}

fn assert_damaged(lookup: Lookup) {
    assert!(
        matches!(lookup, Lookup::Unproven(TreeError::Damaged { .. })),
        "{lookup:?}"
    );
}

#[test]
fn a_panic_of_the_engine_is_an_answer_and_the_end_of_the_tree() {
    let tree = tree(Bad::PanicsOnRead);
    let view = tree.view();
    assert_damaged(view.get(b"a"));
    assert!(
        view.scan(b"", b"", 9, 9).is_err(),
        "nothing in memory is believed any more"
    );
    assert!(tree.insert(&record("a", 1, None)).is_err());
}

#[test]
fn a_record_of_another_key_or_a_later_version_is_damage() {
    assert_damaged(tree(Bad::AnswersForAnotherKey).view().get(b"a"));
    assert_damaged(tree(Bad::AnswersFromTheFuture).view().get(b"a"));
}

#[test]
fn a_scan_out_of_order_is_damage() {
    let scanned = tree(Bad::ScansBackwards).view().scan(b"", b"", 9, 999);
    assert!(matches!(scanned, Err(TreeError::Damaged { .. })), "{scanned:?}");
}

#[tokio::test]
async fn a_failed_flush_is_never_tried_again_and_its_memory_stays_counted() {
    let tree = tree(Bad::FailsToFlush);
    tree.insert(&record("a", 5, Some("1"))).unwrap();
    for _ in 0..2 {
        let sealed = tree.seal(b"", LogId::new(1, 1)).unwrap();
        let error = tree.flush(sealed).await.unwrap_err();
        assert!(error.poisons_disk() && !error.sets_tree_aside(), "{error}");
    }
    assert_eq!(FLUSHES.load(Ordering::Relaxed), 1);
    assert!(tree.memtable_bytes() > 0);
    assert_eq!(tree.durable(), LogId::default());
}
