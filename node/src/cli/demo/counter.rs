//! A counter many add to: between which sums it must be.

/// What is known of a counter to which everybody adds ones.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counter {
    acknowledged: i64,
    /// Additions sent, whatever became of them.
    sent: i64,
}

impl Counter {
    /// An addition is about to be sent; what had been acknowledged before it.
    pub fn begin(&mut self) -> i64 {
        self.sent += 1;
        self.acknowledged
    }

    /// An addition that began at `floor` returned `sum`; whether it can be right.
    pub fn acknowledge(&mut self, floor: i64, sum: i64) -> bool {
        self.acknowledged += 1;
        floor < sum && sum <= self.sent
    }

    /// How many acknowledged additions a final value lacks.
    pub fn missing(&self, value: i64) -> i64 {
        (self.acknowledged - value).max(0)
    }

    /// Whether a final value is more than was ever added.
    pub fn exceeded_by(&self, value: i64) -> bool {
        value > self.sent
    }
}

/// A counter's value as it is stored; an absent one is 0. `None` when it is no integer.
pub(super) fn stored_value(value: Option<&[u8]>) -> Option<i64> {
    let Some(value) = value else { return Some(0) };
    Some(i64::from_be_bytes(value.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_lies_between_what_was_acknowledged_and_what_was_sent() {
        let mut counter = Counter::default();
        let (first, second) = (counter.begin(), counter.begin());
        assert!(counter.acknowledge(first, 2));
        assert!(counter.acknowledge(second, 1));
        let third = counter.begin();
        assert!(!counter.acknowledge(third, 2), "the two before it are missing");
        let fourth = counter.begin();
        assert!(!counter.acknowledge(fourth, 5), "more than was sent");
    }

    #[test]
    fn a_final_value_may_hold_additions_of_unknown_outcome_and_must_hold_the_others() {
        let mut counter = Counter::default();
        let floor = counter.begin();
        counter.acknowledge(floor, 1);
        counter.begin();
        let judged = |value| (counter.missing(value), counter.exceeded_by(value));
        assert_eq!(
            [judged(0), judged(1), judged(2), judged(3)],
            [(1, false), (0, false), (0, false), (0, true)]
        );
        assert_eq!(stored_value(None), Some(0));
        assert_eq!(stored_value(Some(&7i64.to_be_bytes())), Some(7));
        assert_eq!(stored_value(Some(b"7")), None);
    }
}
