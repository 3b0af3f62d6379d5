//! Panics of a simulated world: tasks that panic end alone, and nobody would hear of it.

use std::cell::RefCell;
use std::panic::{self, PanicHookInfo};
use std::sync::{Arc, Once};

use parking_lot::Mutex;

/// Panics, each with how often it happened.
type Seen = Arc<Mutex<Vec<(String, usize)>>>;

thread_local! {
    /// Where panics on this thread are noted; `None` while nobody watches it.
    static SEEN: RefCell<Option<Seen>> = const { RefCell::new(None) };
}

/// A watch over this thread, and over others that join it.
pub(crate) struct Watch(Seen);

/// Begins to watch this thread. Panics of other threads are told as ever.
pub(crate) fn watch() -> Watch {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let told_as_ever = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !note(info) {
                told_as_ever(info);
            }
        }));
    });
    let seen = Seen::default();
    SEEN.set(Some(seen.clone()));
    Watch(seen)
}

/// Whether somebody watches this thread and will tell.
fn note(info: &PanicHookInfo<'_>) -> bool {
    SEEN.with_borrow(|seen| {
        let Some(seen) = seen else { return false };
        let finding = finding(info);
        let mut seen = seen.lock();
        match seen.iter_mut().find(|(known, _)| *known == finding) {
            Some((_, times)) => *times += 1,
            None => seen.push((finding, 1)),
        }
        true
    })
}

fn finding(info: &PanicHookInfo<'_>) -> String {
    let place = info.location().map_or_else(String::new, |location| {
        format!("{}:{}: ", short(location.file()), location.line())
    });
    format!("panic at {place}{}", message(info).replace('\n', " "))
}

fn message<'a>(info: &'a PanicHookInfo<'_>) -> &'a str {
    let payload = info.payload();
    match payload.downcast_ref::<String>() {
        Some(message) => message,
        None => payload
            .downcast_ref::<&str>()
            .map_or("no message", |message| message),
    }
}

/// A source file as it is called in its package: where that lies is this machine's business.
fn short(file: &str) -> &str {
    let Some(end) = file.rfind("/src/") else {
        return file;
    };
    let package = file[..end].rfind('/').map_or(0, |slash| slash + 1);
    &file[package..]
}

impl Watch {
    /// What a thread of the same world does when it starts, to be watched as well.
    pub(crate) fn on_other_threads(&self) -> impl Fn() + Send + Sync + 'static {
        let seen = self.0.clone();
        move || SEEN.set(Some(seen.clone()))
    }

    /// The panics seen so far, each once.
    pub(crate) fn seen(&self) -> Vec<String> {
        let told = |(finding, times): &(String, usize)| match times {
            1 => finding.clone(),
            _ => format!("{finding} ({times} times)"),
        };
        self.0.lock().iter().map(told).collect()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        SEEN.set(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_told_once_with_its_place() {
        let watch = watch();
        for number in [1, 2, 2] {
            let caught = panic::catch_unwind(|| panic!("fell\nat {number}"));
            assert!(caught.is_err());
        }
        let seen = watch.seen();
        let [once, twice] = &seen[..] else {
            panic!("{seen:?}");
        };
        assert!(once.starts_with("panic at jepsen/src/run/panics.rs:"), "{once}");
        assert!(once.ends_with(": fell at 1"), "{once}");
        assert!(twice.ends_with(": fell at 2 (2 times)"), "{twice}");
        drop(watch);
    }

    #[test]
    #[allow(clippy::disallowed_methods)] // a thread of the test
    fn a_panic_of_another_thread_is_told_if_it_joined() {
        let watch = watch();
        let join = watch.on_other_threads();
        let thread = std::thread::spawn(move || {
            join();
            panic!("over there");
        });
        assert!(thread.join().is_err());
        let seen = watch.seen();
        assert!(seen.len() == 1 && seen[0].ends_with("over there"), "{seen:?}");
    }

    #[test]
    fn places_are_told_from_their_package_on() {
        for (file, expected) in [
            (
                "/somewhere/registry/raft-1.0/src/core/mod.rs",
                "raft-1.0/src/core/mod.rs",
            ),
            ("node/src/lib.rs", "node/src/lib.rs"),
            ("build.rs", "build.rs"),
        ] {
            assert_eq!(short(file), expected);
        }
    }
}
