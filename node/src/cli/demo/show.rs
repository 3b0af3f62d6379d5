//! Fills the picture from the books, the monitor and the processes.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use reelkv_proto::v1;
use tokio_util::task::AbortOnDropHandle;

use super::business::Business;
use super::draw::{NodeLine, Screen};
use super::monitor::Seen;

const SAMPLE_INTERVAL: Duration = Duration::from_millis(500);

/// The screen, shared by those who have something to tell.
#[derive(Clone)]
pub(super) struct Show {
    screen: Arc<Mutex<Screen>>,
    started: crate::clock::Instant,
}

impl Show {
    /// An empty screen.
    pub fn new(started: crate::clock::Instant) -> Self {
        Self {
            screen: Arc::new(Mutex::new(Screen::new())),
            started,
        }
    }

    /// Tells of something that happened.
    pub fn event(&self, what: impl AsRef<str>) {
        self.screen.lock().event(self.elapsed_ms(), what.as_ref());
    }

    /// Begins a part of the story.
    pub fn phase(&self, phase: &str) {
        self.screen.lock().picture.phase = phase.to_owned();
        self.event(phase);
    }

    /// Draws the figures again and again until the handle is dropped.
    pub fn follow(
        &self,
        business: Arc<Business>,
        names: Vec<String>,
        seen: impl Fn() -> Seen + Send + 'static,
    ) -> AbortOnDropHandle<()> {
        let show = self.clone();
        AbortOnDropHandle::new(tokio::spawn(async move {
            let mut ticks = tokio::time::interval(SAMPLE_INTERVAL);
            let mut answered_before = 0;
            loop {
                ticks.tick().await;
                answered_before = show.sample(&business, &names, &seen(), answered_before);
            }
        }))
    }

    fn sample(&self, business: &Business, names: &[String], seen: &Seen, answered_before: u64) -> u64 {
        let (answered, acknowledged, failed, stall_ms) = {
            let books = business.books.lock();
            let stall_ms = books.stall.longest_ms(business.elapsed_ms());
            (
                books.answered,
                books.ledger.acknowledged_writes(),
                books.ledger.failed_requests(),
                stall_ms,
            )
        };
        let mut screen = self.screen.lock();
        let picture = &mut screen.picture;
        picture.nodes = names
            .iter()
            .zip(&seen.nodes)
            .map(|(name, status)| node_line(name, status.as_ref()))
            .collect();
        picture.acknowledged_writes = acknowledged;
        picture.failed_requests = failed;
        picture.longest_stall_ms = stall_ms;
        picture.sample((answered - answered_before) * 1_000 / SAMPLE_INTERVAL.as_millis() as u64);
        screen.tick(self.elapsed_ms());
        answered
    }

    fn elapsed_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }
}

fn node_line(name: &str, status: Option<&v1::NodeStatus>) -> NodeLine {
    let name = name.to_owned();
    let Some(status) = status else {
        return NodeLine {
            name,
            state: "does not answer".to_owned(),
            ..NodeLine::default()
        };
    };
    let open = status
        .damage
        .iter()
        .filter(|event| event.repaired_at_ms == 0)
        .count();
    let repaired = status.damage.len() - open;
    let state = match (open, repaired) {
        (0, 0) => "serving".to_owned(),
        (0, repaired) => format!("serving, {repaired} damages repaired"),
        (open, _) => format!("{open} damages being repaired"),
    };
    NodeLine {
        name,
        state,
        leaders: status.replicas.iter().filter(|replica| replica.is_leader).count(),
        trusted: status
            .replicas
            .iter()
            .filter(|replica| replica.state == "trusted")
            .count(),
        replicas: status.replicas.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_s_line_says_what_it_is_doing() {
        let state = |damage: &[u64]| {
            let event = |repaired_at_ms: &u64| v1::DamageEvent {
                repaired_at_ms: *repaired_at_ms,
                ..Default::default()
            };
            let damage = damage.iter().map(event).collect();
            node_line(
                "n1",
                Some(&v1::NodeStatus {
                    damage,
                    ..Default::default()
                }),
            )
            .state
        };
        assert_eq!(state(&[]), "serving");
        assert_eq!(state(&[5]), "serving, 1 damages repaired");
        assert_eq!(state(&[5, 0]), "1 damages being repaired");
        assert_eq!(node_line("n1", None).state, "does not answer");
    }
}
