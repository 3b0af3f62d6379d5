//! Cases side by side on a few threads.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use reelkv::clock::{Instant, now};

use super::report::{Results, Row};
use super::verdict::Verdict;
use super::world::Pace;
use super::{Case, Context, case_seed};
use crate::suite::Progress;

/// No case takes this long unless it does not end.
const CASE_MAX: Duration = Duration::from_secs(300);

/// Runs all cases. In real time, those that were only late or not repaired are run once more, alone:
/// a machine that was busy is no fault of the store. How many is said.
pub(super) fn run(context: &Context, cases: &[Case], known: usize, told: &(dyn Fn(&Row) + Sync)) -> Results {
    let began = now();
    let progress = Progress::new("cases", cases.len() as u64);
    let rows: Mutex<BTreeMap<usize, Row>> = Mutex::default();
    let again = |row: &Row| {
        let of_time = matches!(row.verdict, Verdict::Degraded | Verdict::Unavailable);
        of_time && context.options.pace == Pace::Real
    };
    let all: Vec<usize> = (0..cases.len()).collect();
    on_threads(context.options.workers, &all, |at| {
        let row = run_one(context, &cases[at]);
        if !again(&row) && row.verdict != Verdict::Correct {
            told(&row);
        }
        rows.lock().insert(at, row);
        progress.step();
    });
    progress.finish();
    let late: Vec<usize> = {
        let rows = rows.lock();
        let late = rows.iter().filter(|(_, row)| again(row));
        late.map(|(at, _)| *at).collect()
    };
    if !late.is_empty() {
        let progress = Progress::new("cases once more, alone", late.len() as u64);
        on_threads(1, &late, |at| {
            let mut row = run_one(context, &cases[at]);
            row.again = true;
            if row.verdict != Verdict::Correct {
                told(&row);
            }
            rows.lock().insert(at, row);
            progress.step();
        });
        progress.finish();
    }
    Results::new(
        context,
        known,
        rows.into_inner().into_values().collect(),
        began.elapsed(),
    )
}

fn run_one(context: &Context, case: &Case) -> Row {
    let id = case.id();
    let seed = case_seed(context.options.seed, &id);
    let began = now();
    // A directory of its own, whatever runs beside it.
    let base = context.scratch.path().join(format!("case-{seed:016x}"));
    let outcome = (case.run)(context, seed, &base);
    Row::new(&context.options, case, &outcome, began.elapsed())
}

/// Runs `work` for each of `places` on some threads. A case that does not end is named, and ends the
/// process.
#[allow(clippy::disallowed_methods)] // real threads and real time, outside of every world
fn on_threads(threads: usize, places: &[usize], work: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    let left = AtomicUsize::new(threads);
    let running: Mutex<BTreeMap<usize, (Instant, usize)>> = Mutex::default();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (work, next, left, running) = (&work, &next, &left, &running);
            scope.spawn(move || {
                while let Some(place) = places.get(next.fetch_add(1, Ordering::Relaxed)) {
                    running.lock().insert(thread, (now(), *place));
                    work(*place);
                    running.lock().remove(&thread);
                }
                left.fetch_sub(1, Ordering::Release);
            });
        }
        while left.load(Ordering::Acquire) > 0 {
            std::thread::sleep(Duration::from_millis(5));
            let hung = |(since, _): &&(Instant, usize)| since.elapsed() > CASE_MAX;
            if let Some((_, place)) = running.lock().values().find(hung) {
                eprintln!("case number {place} does not end within {CASE_MAX:?}");
                super::remove_all_scratch();
                std::process::exit(1);
            }
        }
    });
}
