//! Views held open for transfers to other replicas.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::{Instant, now};
use crate::limits::VIEW_LIFE_MS_MAX;
use crate::shard::Control;
use crate::storage::View;

/// Most transfers of one replica at a time.
const OPEN_MAX: usize = 8;

struct OpenView {
    view: View,
    control: Control,
    expires: Instant,
}

/// A replica's views, by number. Each lives for a bounded time after its last use, as it keeps
/// old versions on disk.
#[derive(Default)]
pub struct OpenViews {
    views: Mutex<(u64, BTreeMap<u64, OpenView>)>,
}

impl OpenViews {
    /// Keeps a view open; `None` when too many are.
    pub fn open(&self, view: View, control: Control) -> Option<u64> {
        let (last_id, views) = &mut *self.views.lock();
        let time = now();
        views.retain(|_, open| open.expires > time);
        if views.len() >= OPEN_MAX {
            return None;
        }
        *last_id += 1;
        views.insert(
            *last_id,
            OpenView {
                view,
                control,
                expires: time + life(),
            },
        );
        Some(*last_id)
    }

    /// A view opened earlier; `None` when it was closed or expired.
    pub fn get(&self, id: u64) -> Option<(View, Control)> {
        let (_, views) = &mut *self.views.lock();
        let open = views.get_mut(&id)?;
        open.expires = now() + life();
        Some((open.view.clone(), open.control.clone()))
    }

    /// Lets go of a view.
    pub fn close(&self, id: u64) {
        self.views.lock().1.remove(&id);
    }

    /// Lets go of all.
    pub fn clear(&self) {
        self.views.lock().1.clear();
    }
}

fn life() -> Duration {
    Duration::from_millis(VIEW_LIFE_MS_MAX)
}
