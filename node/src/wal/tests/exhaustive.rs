//! Every single fault of a kind, one after the other.

use parking_lot::Mutex;

use super::super::exhaustive::{Counts, Exhaustive};

/// Cases that a thread takes at a time.
const SLICE: usize = 4_096;

#[tokio::test(start_paused = true)]
async fn every_flipped_bit_and_every_cut_is_healed_or_reported() {
    let log = Exhaustive::new().await.expect("a whole log");
    let (next, counts) = (Mutex::new(0), Mutex::new(Counts::default()));
    let failed = Mutex::new(None);
    let work = || {
        loop {
            let from = {
                let mut next = next.lock();
                let from = *next;
                *next += SLICE;
                from
            };
            if from >= log.cases() || failed.lock().is_some() {
                return;
            }
            match log.check(from..from + SLICE) {
                Ok(checked) => *counts.lock() += checked,
                Err(wrong) => *failed.lock() = Some(wrong),
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    let (counts, failed) = (counts.into_inner(), failed.into_inner());
    assert_eq!(failed, None);
    println!("{counts:?}");
    assert_eq!(counts.cases, log.cases());
    assert!(counts.cases > 400_000, "{counts:?}");
    assert!(counts.detected > counts.harmless, "{counts:?}");
}
