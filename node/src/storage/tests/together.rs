//! Readers, a writer, checkpoints and compactions at the same time.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::*;
use crate::storage::View;

const KEYS: u64 = 40;
const ENTRIES: u64 = 1_500;

/// Entry n gives every key the value n (key 0 is deleted by odd entries), so that a view tells
/// by its version what everything must be.
fn write_entry(tree: &Tree, number: u64) {
    let first = (number - 1) * KEYS + 1;
    tree.begin_entry(number * KEYS);
    for (version, key) in (first..).zip(0..KEYS) {
        let value = number.to_string();
        let value = (key != 0 || number.is_multiple_of(2)).then_some(&*value);
        tree.insert(&record(&format!("k{key:02}"), version, value))
            .unwrap();
    }
    tree.publish(number * KEYS);
}

fn assert_view_is_whole(view: &View, scan: bool) {
    let number = view.version() / KEYS;
    assert_eq!(view.version() % KEYS, 0, "a view is between entries");
    if number == 0 {
        return;
    }
    for key in [0, 1, 17, KEYS - 1] {
        let expected = (key != 0 || number.is_multiple_of(2)).then(|| number.to_string());
        assert_eq!(
            value(view.get(format!("k{key:02}").as_bytes())),
            expected,
            "key {key} in {view:?}"
        );
    }
    if scan {
        let page = view.scan(b"", b"", usize::MAX, usize::MAX).unwrap();
        assert_eq!(page.records.len() as u64, KEYS - number % 2, "{view:?}");
        let of_entry = |record: &StoredRecord| record.version.div_ceil(KEYS) == number;
        assert!(page.records.iter().all(of_entry), "{view:?}");
    }
}

async fn everything_at_once(engine: EngineKind) {
    let bench = Bench::new(engine);
    let tree = bench.storage.create(ID).await.unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let sealed_at = Arc::new(AtomicU64::new(0));

    let reader = |seed: usize| {
        let (tree, done) = (tree.clone(), done.clone());
        tokio::spawn(async move {
            let mut held = Vec::new();
            let mut reads = 0_usize;
            while !done.load(Ordering::Acquire) {
                let view = tree.view();
                assert_view_is_whole(&view, reads.is_multiple_of(5));
                held.push(view);
                if held.len() > 8 + seed {
                    assert_view_is_whole(&held.remove(reads % 8), true);
                }
                reads += 1;
                tokio::task::yield_now().await;
            }
            reads
        })
    };
    let readers = [reader(0), reader(5)];
    let compactor = {
        let (tree, done) = (tree.clone(), done.clone());
        tokio::spawn(async move {
            while !done.load(Ordering::Acquire) {
                tree.compact().await.unwrap();
                tree.compact_fully().await.unwrap();
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
        })
    };
    let mut flushes = Vec::new();
    for number in 1..=ENTRIES {
        write_entry(&tree, number);
        if number.is_multiple_of(60) {
            let sealed = tree.seal(b"", LogId::new(1, number)).unwrap();
            let (tree, sealed_at) = (tree.clone(), sealed_at.clone());
            flushes.push(tokio::spawn(async move {
                let wanted = sealed.applied().index;
                let mark = tree.flush(sealed).await.unwrap();
                assert!(
                    mark.applied.index >= wanted,
                    "a flush covers what was sealed before it"
                );
                assert_eq!(mark.last_version, mark.applied.index * KEYS);
                sealed_at.fetch_max(mark.applied.index, Ordering::AcqRel);
            }));
        }
        if number.is_multiple_of(8) {
            tokio::task::yield_now().await;
        }
    }
    for flush in flushes {
        flush.await.unwrap();
    }
    done.store(true, Ordering::Release);
    for reader in readers {
        assert!(reader.await.unwrap() > 0, "readers were let through");
    }
    compactor.await.unwrap();
    assert_eq!((tree.durable().index, tree.memtable_bytes()), (ENTRIES, 0));
    assert_eq!(sealed_at.load(Ordering::Acquire), ENTRIES);
    assert_view_is_whole(&tree.view(), true);
}

#[tokio::test(flavor = "multi_thread")]
async fn lsm() {
    everything_at_once(EngineKind::Lsm).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory() {
    everything_at_once(EngineKind::Memory).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sled() {
    everything_at_once(EngineKind::Sled).await;
}
