//! Who differs. Pure: decided from what voters say they hold at one marker.
//!
//! A bucket is *decided* when a majority of all voters says the very same. Nobody's rank counts, the
//! leader's neither; a voter whose records came from another since they were last compared has no say,
//! or one wrong copy would become two. Only if all voters say the same, nothing better can be known.
//!
//! How a bucket goes on follows from the records behind its first key. So two buckets that begin at the
//! same key and are not the same come from different records, for certain. Buckets that begin at
//! different keys say nothing of each other.

use std::collections::{BTreeMap, BTreeSet};

use reelkv_proto::types::ReplicaId;

use crate::shard::Spans;
use crate::storage::Bucket;

/// What one replica says it holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    /// Side by side, but for those it does not prove.
    pub buckets: Vec<Bucket>,
    /// Keys of which it only says again what another said.
    pub uncompared: Spans,
}

impl Said {
    fn has_a_say_in(&self, bucket: &Bucket) -> bool {
        !self.uncompared.intersects(&bucket.range())
    }
}

/// What the voters say, all together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Decided {
    /// What a majority holds.
    pub buckets: BTreeSet<Bucket>,
    /// Keys of which voters hold something different, and no majority the same.
    pub undecided: Spans,
    /// How many buckets those are.
    pub undecided_count: u64,
}

/// How one replica stands to what is decided.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Standing {
    /// Where it holds what the majority holds.
    pub agreed: Spans,
    /// Buckets of that.
    pub agreed_count: u64,
    /// Where it does not.
    pub differs: Spans,
    /// Buckets of that.
    pub differing_count: u64,
}

/// What a majority of `voters` voters holds, by what those that answered say.
pub(super) fn decide(said: &BTreeMap<ReplicaId, Said>, voters: usize) -> Decided {
    let mut votes: BTreeMap<&Bucket, (usize, usize)> = BTreeMap::new();
    for voter in said.values() {
        for bucket in &voter.buckets {
            let (all, own_say) = votes.entry(bucket).or_default();
            *all += 1;
            *own_say += usize::from(voter.has_a_say_in(bucket));
        }
    }
    let is_decided = |(all, own_say): &(usize, usize)| own_say * 2 > voters || *all == voters;
    let of_majority = votes.iter().filter(|(_, votes)| is_decided(votes));
    let buckets: BTreeSet<Bucket> = of_majority.map(|(bucket, _)| (*bucket).clone()).collect();
    let begins_decided: BTreeSet<_> = buckets.iter().map(|bucket| &bucket.start).collect();
    let mut decided = Decided::default();
    let said_of: Vec<&&Bucket> = votes.keys().collect(); // those of one first key lie together
    for same_start in said_of.chunk_by(|a, b| a.start == b.start) {
        if same_start.len() > 1 && !begins_decided.contains(&same_start[0].start) {
            same_start
                .iter()
                .for_each(|bucket| decided.undecided.add(&bucket.range()));
            decided.undecided_count += 1;
        }
    }
    decided.buckets = buckets;
    decided
}

impl Decided {
    /// How a replica stands that says this.
    pub fn standing(&self, said: &Said) -> Standing {
        let by_start: BTreeMap<_, &Bucket> = self
            .buckets
            .iter()
            .map(|bucket| (&bucket.start, bucket))
            .collect();
        let mut standing = Standing::default();
        for own in &said.buckets {
            match by_start.get(&own.start) {
                Some(decided) if *decided == own => {
                    standing.agreed.add(&own.range());
                    standing.agreed_count += 1;
                }
                Some(decided) => {
                    // One may end earlier: what ends a bucket may be the very record that is amiss.
                    standing.differs.add(&own.range());
                    standing.differs.add(&decided.range());
                    standing.differing_count += 1;
                }
                None => {}
            }
        }
        standing.agreed = standing.agreed.without(&standing.differs);
        standing
    }

    /// Live records in what is decided.
    pub fn records(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.records).sum()
    }

    /// The keys of what is decided.
    pub fn spans(&self) -> Spans {
        self.buckets.iter().map(Bucket::range).collect()
    }
}

#[cfg(test)]
mod tests {
    use reelkv_proto::types::KeyRange;

    use super::*;

    fn bucket(start: &'static str, end: &'static str, digest: u128) -> Bucket {
        let KeyRange { start, end } = KeyRange::new(start, end);
        Bucket {
            start,
            end,
            records: 10,
            digest,
        }
    }

    fn says(buckets: &[(&'static str, &'static str, u128)]) -> Said {
        let buckets = buckets
            .iter()
            .map(|(start, end, digest)| bucket(start, end, *digest));
        Said {
            buckets: buckets.collect(),
            uncompared: Spans::default(),
        }
    }

    fn repeats(said: &Said, start: &'static str, end: &'static str) -> Said {
        Said {
            uncompared: span(start, end),
            ..said.clone()
        }
    }

    fn span(start: &'static str, end: &'static str) -> Spans {
        Spans::from(KeyRange::new(start, end))
    }

    fn decided(said: &[&Said], voters: usize) -> Decided {
        let numbered = said.iter().enumerate();
        decide(
            &numbered.map(|(id, said)| (id as u64, (*said).clone())).collect(),
            voters,
        )
    }

    #[test]
    fn two_of_three_decide_and_the_third_differs_there_and_only_there() {
        let right = says(&[("", "g", 1), ("g", "p", 2), ("p", "", 3)]);
        let wrong = says(&[("", "g", 1), ("g", "p", 9), ("p", "", 3)]);
        let decided = decided(&[&right, &wrong, &right], 3);
        assert_eq!((decided.spans(), decided.records()), (Spans::everything(), 30));
        assert_eq!(decided.undecided, Spans::default());
        let standing = decided.standing(&wrong);
        assert_eq!(standing.differs, span("g", "p"));
        assert_eq!(standing.agreed, span("g", "p").complement());
        assert_eq!((standing.agreed_count, standing.differing_count), (2, 1));
        assert_eq!(decided.standing(&right).differs, Spans::default());
    }

    #[test]
    fn a_majority_is_one_of_all_voters_not_of_those_that_answer() {
        let said = says(&[("", "", 1)]);
        assert!(decided(&[&said], 1).undecided.is_empty());
        assert!(!decided(&[&said, &said], 3).buckets.is_empty());
        for (answers, voters) in [(1, 2), (1, 3), (2, 4), (2, 5)] {
            let alone = decided(&vec![&said; answers], voters);
            assert_eq!(
                alone,
                Decided::default(),
                "{answers} of {voters}: nothing, and nothing to tell"
            );
        }
    }

    #[test]
    fn voters_that_all_differ_are_undecided_and_nobody_is_wrong() {
        let (a, b, c) = (says(&[("", "", 1)]), says(&[("", "", 2)]), says(&[("", "", 3)]));
        for said in [vec![&a, &b, &c], vec![&a, &b]] {
            let decided = decided(&said, 3);
            assert_eq!(decided.undecided, Spans::everything());
            assert_eq!(decided.undecided_count, 1);
            for one in said {
                assert_eq!(decided.standing(one), Standing::default());
            }
        }
    }

    #[test]
    fn who_only_says_again_what_another_said_has_no_say() {
        let (right, wrong) = (says(&[("", "", 1)]), says(&[("", "", 9)]));
        let copied = repeats(&wrong, "b", "c");
        let undecided = decided(&[&right, &wrong, &copied], 3);
        assert_eq!(undecided.undecided, Spans::everything());
        let right_again = repeats(&right, "b", "c");
        assert!(decided(&[&right, &right_again], 3).buckets.is_empty());
        let proven = decided(&[&right, &right, &copied], 3);
        assert_eq!(proven.standing(&copied).differs, Spans::everything());
    }

    #[test]
    fn where_all_voters_say_the_same_it_does_not_matter_whose_it_was() {
        let said = says(&[("", "", 1)]);
        let copied = repeats(&said, "", "");
        let all = decided(&[&said, &copied, &copied], 3);
        assert_eq!(all.standing(&copied).agreed, Spans::everything());
    }

    #[test]
    fn a_lost_record_that_ended_a_bucket_concerns_both_sides_of_it() {
        let right = says(&[("", "g", 1), ("g", "p", 2), ("p", "", 3)]);
        let lost = says(&[("", "p", 4), ("p", "", 3)]);
        let standing = decided(&[&right, &right, &lost], 3).standing(&lost);
        assert_eq!(standing.differs, span("", "p"));
        assert_eq!(standing.agreed, span("p", ""));
        let surplus = says(&[("", "c", 5), ("c", "g", 6), ("g", "p", 2), ("p", "", 3)]);
        let standing = decided(&[&right, &right, &surplus], 3).standing(&surplus);
        assert_eq!(standing.differs, span("", "g"));
    }

    #[test]
    fn buckets_that_begin_elsewhere_say_nothing_of_each_other() {
        let right = says(&[("", "g", 1), ("g", "p", 2), ("p", "", 3)]);
        // It does not prove its first keys, and so cuts at other places behind them.
        let apart = says(&[("h", "q", 7), ("q", "", 8)]);
        let with_apart = decided(&[&right, &right, &apart], 3);
        assert_eq!(with_apart.standing(&apart), Standing::default());
        let two = decided(&[&right, &apart], 3);
        assert_eq!(two, Decided::default());
    }
}
