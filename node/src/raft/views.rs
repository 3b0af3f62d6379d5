//! Views held open for transfers to other replicas.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;

use super::Donation;
use crate::clock::{Instant, now};
use crate::limits::VIEW_LIFE_MS_MAX;

/// Most transfers of one replica at a time.
const OPEN_MAX: usize = 8;
/// Most of those that the receiver asked for and may resume: there must be room for what is offered.
const RESUMABLE_MAX: usize = OPEN_MAX / 2;
/// How long the receiver of one of these may take to come back.
const RESUMABLE_LIFE: Duration = Duration::from_secs(60);

struct OpenView {
    donation: Donation,
    life: Duration,
    expires: Instant,
}

/// A replica's views, by number. Each lives for a bounded time after its last use, as it keeps
/// old versions on disk.
#[derive(Default)]
pub struct OpenViews {
    views: Mutex<(u64, BTreeMap<u64, OpenView>)>,
}

impl OpenViews {
    /// Keeps a view open that is being offered; `None` when too many are open.
    pub fn open(&self, donation: Donation) -> Option<u64> {
        self.keep(donation, OPEN_MAX, Duration::from_millis(VIEW_LIFE_MS_MAX))
    }

    /// Keeps a view open for a stream that may have to go on from the one that begins; `None` when too many
    /// are open.
    pub fn open_resumable(&self, donation: Donation) -> Option<u64> {
        self.keep(donation, RESUMABLE_MAX, RESUMABLE_LIFE)
    }

    fn keep(&self, donation: Donation, open_max: usize, life: Duration) -> Option<u64> {
        let (last_id, views) = &mut *self.views.lock();
        let time = now();
        views.retain(|_, open| open.expires > time);
        if views.len() >= open_max {
            return None;
        }
        *last_id += 1;
        let open = OpenView {
            donation,
            life,
            expires: time + life,
        };
        views.insert(*last_id, open);
        Some(*last_id)
    }

    /// A view opened earlier; `None` when it was closed or expired.
    pub fn get(&self, id: u64) -> Option<Donation> {
        let (_, views) = &mut *self.views.lock();
        let open = views.get_mut(&id)?;
        open.expires = now() + open.life;
        Some(open.donation.clone())
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
