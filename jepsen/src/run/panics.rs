//! Panics of a simulated world: tasks that panic end alone, and nobody would hear of it.

use std::cell::RefCell;
use std::panic;
use std::sync::Once;

thread_local! {
    /// Panics on this thread; `None` while nobody watches it.
    static SEEN: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// A watch over this thread.
pub(super) struct Watch;

/// Begins to watch this thread. Panics of other threads are told as ever.
pub(super) fn watch() -> Watch {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let told_as_ever = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let noted = SEEN.with_borrow_mut(|seen| match seen {
                Some(seen) => {
                    seen.push(info.to_string().replace('\n', " "));
                    true
                }
                None => false,
            });
            if !noted {
                told_as_ever(info);
            }
        }));
    });
    SEEN.set(Some(Vec::new()));
    Watch
}

impl Watch {
    /// The panics seen so far.
    pub(super) fn seen(&self) -> Vec<String> {
        SEEN.with_borrow(|seen| seen.clone().unwrap_or_default())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        SEEN.set(None);
    }
}
