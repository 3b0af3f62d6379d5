//! A leader that no quorum answers keeps quiet for a while, so that another can be elected.
//!
//! Its appends may still arrive where its followers' answers get lost (a link that is cut one way), and
//! whoever hears a leader elects no other: the shard would stand still for as long as the link is
//! cut. openraft pauses its heartbeats then (`quorum_loss_probe_interval`), in every other slot of
//! time; what it sends again and again because it waits for an answer keeps the same slots here.

use std::sync::OnceLock;
use std::time::Duration;

use openraft::async_runtime::{Instant as _, WatchReceiver as _};
use openraft::metrics::RaftDataMetrics;
use openraft::type_config::alias::WatchReceiverOf;
use parking_lot::Mutex;

use super::types::{Raft, TypeConfig};
use crate::clock::{Instant, now};

type DataMetrics = WatchReceiverOf<TypeConfig, RaftDataMetrics<TypeConfig>>;

/// Whether a quorum still answers this replica when it leads.
pub struct Quorum {
    /// How long a quorum may be silent, and followers elect nobody.
    lease: Duration,
    /// How long the leader keeps quiet, and then does not.
    slot: Duration,
    metrics: OnceLock<DataMetrics>,
    /// The term in which it last had something to send, and when that term's leader first had.
    led_since: Mutex<Option<(u64, Instant)>>,
}

impl Quorum {
    /// Of a leader whose followers wait for `lease` before they elect another.
    pub fn new(lease: Duration, slot: Duration) -> Self {
        Self {
            lease,
            slot: slot.max(Duration::from_millis(1)),
            metrics: OnceLock::new(),
            led_since: Mutex::default(),
        }
    }

    /// Judges by what this Raft says from now on.
    pub fn follow(&self, raft: &Raft) {
        // A second one would be the same.
        let _ = self.metrics.set(raft.data_metrics());
    }

    /// Whether the leader of `term`, which has something to send, is to keep quiet now.
    pub fn is_lost(&self, term: u64) -> bool {
        let Some(metrics) = self.metrics.get() else {
            return false;
        };
        #[allow(clippy::disallowed_methods)] // for as long as it takes to read a time
        let answered = metrics
            .borrow_watched()
            .last_quorum_acked
            .map(|answered| answered.elapsed());
        let led_for = self.led_for(term);
        // A leader of whom no quorum has heard yet is silent since it leads.
        let silent_for = answered.map_or(led_for, |answered| answered.min(led_for));
        is_quiet(silent_for, self.lease, self.slot)
    }

    fn led_for(&self, term: u64) -> Duration {
        let mut led_since = self.led_since.lock();
        match &*led_since {
            Some((led, since)) if *led == term => since.elapsed(),
            _ => {
                *led_since = Some((term, now()));
                Duration::ZERO
            }
        }
    }
}

/// Quiet, loud, quiet, …: from the end of the lease on.
fn is_quiet(silent_for: Duration, lease: Duration, slot: Duration) -> bool {
    let lost_for = silent_for.checked_sub(lease);
    lost_for.is_some_and(|lost_for| (lost_for.as_nanos() / slot.as_nanos()).is_multiple_of(2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_quiet_in_every_other_slot_after_the_lease() {
        let ms = Duration::from_millis;
        for (silent_ms, quiet) in [
            (0, false),
            (999, false),
            (1_000, true),
            (2_999, true),
            (3_000, false),
            (4_999, false),
            (5_000, true),
        ] {
            assert_eq!(
                is_quiet(ms(silent_ms), ms(1_000), ms(2_000)),
                quiet,
                "{silent_ms} ms"
            );
        }
    }
}
