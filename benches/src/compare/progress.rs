//! What is being done, and how long the rest will take.

use std::time::Duration;

use tokio::time::Instant;

/// Lines on stderr.
pub struct Progress {
    begun: Instant,
    /// Planned time of everything, and of what is done.
    planned: Duration,
    done: Duration,
}

impl Progress {
    pub fn new(planned: Duration) -> Self {
        Self {
            begun: Instant::now(),
            planned,
            done: Duration::ZERO,
        }
    }

    /// A step begins that is planned to take this long.
    pub fn step(&mut self, what: &str, planned: Duration) {
        let left = self.planned.saturating_sub(self.done);
        eprintln!(
            "[{} gone, about {} left] {what}",
            clock(self.begun.elapsed()),
            clock(left)
        );
        self.done += planned;
    }
}

/// Minutes and seconds.
fn clock(duration: Duration) -> String {
    let seconds = duration.as_secs();
    format!("{}:{:02}", seconds / 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_have_two_digits() {
        assert_eq!(clock(Duration::from_secs(64)), "1:04");
        assert_eq!(clock(Duration::from_secs(3_600)), "60:00");
    }
}
