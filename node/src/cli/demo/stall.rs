//! The longest time in which nothing was answered.

/// Measures, lane by lane, the longest time between two completed requests. A lane is probed all the
/// time at a fixed rate, so that a pause is the cluster's and not the prober's.
///
/// Times are milliseconds of one clock and never fall within a lane.
#[derive(Clone, Debug)]
pub(super) struct StallMeter {
    lanes: Vec<Lane>,
}

#[derive(Clone, Copy, Debug)]
struct Lane {
    last_ms: u64,
    longest_ms: u64,
}

impl StallMeter {
    /// Begins to measure `lanes` lanes.
    pub fn new(lanes: usize, now_ms: u64) -> Self {
        Self {
            lanes: vec![
                Lane {
                    last_ms: now_ms,
                    longest_ms: 0
                };
                lanes
            ],
        }
    }

    /// A request of a lane has been answered.
    pub fn completed(&mut self, lane: usize, now_ms: u64) {
        let lane = &mut self.lanes[lane];
        lane.longest_ms = lane.longest_ms.max(now_ms.saturating_sub(lane.last_ms));
        lane.last_ms = lane.last_ms.max(now_ms);
    }

    /// The longest stall of any lane up to now, one still going on included.
    pub fn longest_ms(&self, now_ms: u64) -> u64 {
        let of = |lane: &Lane| lane.longest_ms.max(now_ms.saturating_sub(lane.last_ms));
        self.lanes.iter().map(of).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_silent_lane_among_busy_ones_is_a_stall() {
        let mut meter = StallMeter::new(2, 0);
        for now_ms in (0..1_000).step_by(50) {
            meter.completed(0, now_ms);
            if !(200..700).contains(&now_ms) {
                meter.completed(1, now_ms);
            }
        }
        assert_eq!(meter.longest_ms(1_000), 550);
    }

    #[test]
    fn a_stall_counts_from_the_start_and_while_it_lasts() {
        let mut meter = StallMeter::new(1, 100);
        assert_eq!(meter.longest_ms(900), 800);
        meter.completed(0, 1_000);
        assert_eq!(meter.longest_ms(1_000), 900);
        assert_eq!(meter.longest_ms(3_000), 2_000);
    }

    #[test]
    fn answers_that_arrive_out_of_order_lengthen_nothing() {
        let mut meter = StallMeter::new(1, 0);
        meter.completed(0, 300);
        meter.completed(0, 250);
        meter.completed(0, 400);
        assert_eq!(meter.longest_ms(400), 300);
    }
}
