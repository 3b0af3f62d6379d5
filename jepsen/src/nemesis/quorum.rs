//! When a clean quorum existed: a majority of nodes that nothing had happened to.

use serde::{Deserialize, Serialize};

/// How long after a fault has ended its nodes may still be catching up.
const GRACE_US: u64 = 5_000_000;

/// A fault, whom it hit, and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Occurrence {
    /// Nodes it hindered, counted from 0; none for a fault that must not hinder anybody.
    pub nodes: Vec<usize>,
    /// When it began, in microseconds since the load began.
    pub from_us: u64,
    /// When it had ended.
    pub until_us: u64,
}

/// The spans up to `end_us` in which at most a minority of `nodes` was hindered.
pub fn clean_spans(occurrences: &[Occurrence], nodes: usize, end_us: u64) -> Vec<(u64, u64)> {
    let until = |occurrence: &Occurrence| occurrence.until_us.saturating_add(GRACE_US);
    let mut moments: Vec<u64> = occurrences
        .iter()
        .flat_map(|occurrence| [occurrence.from_us, until(occurrence)])
        .filter(|moment| *moment < end_us)
        .chain([0, end_us])
        .collect();
    moments.sort_unstable();
    moments.dedup();
    let is_clean = |from: u64| {
        let hindered = |node: usize| {
            occurrences.iter().any(|occurrence| {
                (occurrence.from_us..until(occurrence)).contains(&from) && occurrence.nodes.contains(&node)
            })
        };
        (0..nodes).filter(|node| hindered(*node)).count() <= (nodes - 1) / 2
    };
    let mut spans: Vec<(u64, u64)> = Vec::new();
    for span in moments.windows(2).filter(|span| is_clean(span[0])) {
        match spans.last_mut() {
            Some(last) if last.1 == span[0] => last.1 = span[1],
            _ => spans.push((span[0], span[1])),
        }
    }
    spans
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hit(nodes: &[usize], from_s: u64, until_s: u64) -> Occurrence {
        Occurrence {
            nodes: nodes.to_vec(),
            from_us: from_s * 1_000_000,
            until_us: until_s * 1_000_000,
        }
    }

    fn spans(occurrences: &[Occurrence], nodes: usize) -> Vec<(u64, u64)> {
        let seconds = |us: u64| us / 1_000_000;
        let spans = clean_spans(occurrences, nodes, 100_000_000).into_iter();
        spans
            .map(|(from, until)| (seconds(from), seconds(until)))
            .collect()
    }

    #[test]
    fn one_of_three_leaves_a_clean_quorum_and_two_do_not() {
        assert_eq!(spans(&[], 3), [(0, 100)]);
        assert_eq!(spans(&[hit(&[1], 10, 20)], 3), [(0, 100)]);
        assert_eq!(spans(&[hit(&[0, 1], 10, 20)], 3), [(0, 10), (25, 100)]);
        assert_eq!(
            spans(&[hit(&[0], 10, 20), hit(&[1], 24, 30)], 3),
            [(0, 24), (25, 100)],
            "node 1 is hit while node 0 is still catching up"
        );
        assert_eq!(spans(&[hit(&[0, 1], 10, 20)], 5), [(0, 100)]);
        assert_eq!(spans(&[hit(&[0, 1, 2], 10, 98)], 5), [(0, 10)]);
    }
}
