//! The time of a shard: what its log says, and what the clocks of its voters say together.
//!
//! Every entry carries a logged time, never decreasing along the log. What expires is judged by it
//! alone, so all replicas agree on what has expired, and what has never comes back. A leader takes
//! it from the lower median of its voters' clocks: as long as most of them are right, one that is
//! hours off moves nothing.

/// Whether what expires then has expired at a logged time; 0 never does.
pub fn has_expired(expires_at_ms: u64, logged_time_ms: u64) -> bool {
    expires_at_ms != 0 && expires_at_ms <= logged_time_ms
}

/// The time that a shard's clocks show, given those that are known; `None` unless they are the
/// clocks of a majority of its `voters`.
pub fn majority_time(voters: usize, known_ms: Vec<u64>) -> Option<u64> {
    match known_ms.len() * 2 > voters {
        true => lower_median(known_ms),
        false => None,
    }
}

/// Of an even number of clocks the earlier one in the middle: too early a time only lets something
/// live longer.
fn lower_median(mut clocks_ms: Vec<u64>) -> Option<u64> {
    let middle = clocks_ms.len().checked_sub(1)? / 2;
    Some(*clocks_ms.select_nth_unstable(middle).1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lower_median_of_no_one_two_three_four_and_five_clocks() {
        let cases: [(&[u64], Option<u64>); 6] = [
            (&[], None),
            (&[7], Some(7)),
            (&[9, 7], Some(7)),
            (&[9, 7, 8], Some(8)),
            (&[4, 1, 3, 2], Some(2)),
            (&[5, 1, 4, 2, 3], Some(3)),
        ];
        for (clocks, median) in cases {
            assert_eq!(lower_median(clocks.to_vec()), median, "{clocks:?}");
        }
    }

    #[test]
    fn less_than_a_majority_of_the_voters_tells_no_time() {
        for (voters, known, told) in [
            (0, 0, false),
            (1, 0, false),
            (1, 1, true),
            (2, 1, false),
            (2, 2, true),
            (3, 1, false),
            (3, 2, true),
            (4, 2, false),
            (4, 3, true),
            (5, 2, false),
            (5, 3, true),
        ] {
            let time = majority_time(voters, vec![7; known]);
            assert_eq!(time.is_some(), told, "{known} of {voters}");
        }
    }

    #[test]
    fn one_wrong_clock_of_three_moves_nothing() {
        for wrong in [0, 99, 3_600_100, u64::MAX] {
            let time = majority_time(3, vec![wrong, 100, 101]).unwrap();
            assert!((100..=101).contains(&time), "{wrong}");
        }
    }

    #[test]
    fn it_expires_at_its_time_and_never_without_one() {
        assert_eq!(
            [9, 10, u64::MAX].map(|time| has_expired(10, time)),
            [false, true, true]
        );
        assert!(!has_expired(0, u64::MAX));
    }
}
