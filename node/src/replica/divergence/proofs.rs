//! When each part of a replica's keys was last found to be what a majority holds.

use std::collections::VecDeque;
use std::time::Duration;

use reelkv_proto::types::KeyRange;

use crate::clock::{Instant, now};
use crate::shard::Spans;

/// Most times kept apart; older ones become one, the oldest.
const TIMES_MAX: usize = 256;

/// Proofs since the replica was started.
///
/// Invariant: newest first, and no key is in two.
#[derive(Default)]
pub(super) struct Proofs(VecDeque<(Instant, Spans)>);

impl Proofs {
    /// These keys were found to be right as of this moment.
    pub fn proven(&mut self, spans: &Spans) {
        self.void(spans);
        self.0.push_front((now(), spans.clone()));
        while self.0.len() > TIMES_MAX
            && let Some((oldest, spans)) = self.0.pop_back()
        {
            if let Some((at, last)) = self.0.back_mut() {
                last.extend(&spans);
                *at = oldest;
            }
        }
    }

    /// What was proven of these keys does not count any more.
    pub fn void(&mut self, spans: &Spans) {
        for (_, proven) in &mut self.0 {
            *proven = proven.without(spans);
        }
        self.0.retain(|(_, proven)| !proven.is_empty());
    }

    /// Age of the oldest proof in a range but for these keys; `None` while any of it has none.
    pub fn oldest(&self, range: &KeyRange, but_for: &Spans) -> Option<Duration> {
        let wanted = Spans::from(range.clone()).without(but_for);
        let mut missing = wanted.clone();
        let mut oldest = None;
        for (at, proven) in &self.0 {
            let here = missing.intersection(proven);
            if !here.is_empty() {
                missing = missing.without(&here);
                oldest = Some(at.elapsed());
            }
        }
        oldest.filter(|_| missing.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(start: &'static str, end: &'static str) -> Spans {
        Spans::from(KeyRange::new(start, end))
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn the_oldest_proof_counts_once_there_is_one_of_everything() {
        let (mut proofs, all, none) = (Proofs::default(), KeyRange::default(), Spans::default());
        assert_eq!(proofs.oldest(&all, &none), None);
        proofs.proven(&span("", "m"));
        tokio::time::sleep(SECOND).await;
        assert_eq!(proofs.oldest(&all, &none), None, "nothing from m on");
        assert_eq!(proofs.oldest(&KeyRange::new("b", "c"), &none), Some(SECOND));
        proofs.proven(&span("m", ""));
        tokio::time::sleep(SECOND).await;
        assert_eq!(proofs.oldest(&all, &none), Some(2 * SECOND));
        proofs.proven(&span("", "z"));
        assert_eq!(proofs.oldest(&all, &none), Some(SECOND), "from z on");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_found_wrong_is_proven_no_more_unless_it_is_left_out() {
        let (mut proofs, all) = (Proofs::default(), KeyRange::default());
        proofs.proven(&Spans::everything());
        proofs.void(&span("c", "d"));
        assert_eq!(proofs.oldest(&all, &Spans::default()), None);
        assert_eq!(proofs.oldest(&all, &span("c", "d")), Some(Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn many_times_become_few_and_none_gets_younger() {
        let mut proofs = Proofs::default();
        for number in 0..3 * TIMES_MAX as u32 {
            let range = KeyRange::new(number.to_be_bytes().to_vec(), (number + 1).to_be_bytes().to_vec());
            proofs.proven(&Spans::from(range));
            tokio::time::sleep(SECOND).await;
        }
        assert_eq!(proofs.0.len(), TIMES_MAX);
        let last = 3 * TIMES_MAX as u32;
        let all = KeyRange::new(0_u32.to_be_bytes().to_vec(), last.to_be_bytes().to_vec());
        assert_eq!(proofs.oldest(&all, &Spans::default()), Some(last * SECOND));
    }
}
