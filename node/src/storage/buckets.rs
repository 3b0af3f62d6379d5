//! Cuts a view into buckets, so that replicas can compare what they hold piece by piece.
//!
//! A bucket ends before a key whose hash has its low twelve bits zero, or where its records have grown
//! to a bound. So replicas that hold the same cut at the same keys with nothing agreed on beforehand, and
//! one that holds something else cuts like the others again soon after. Its digest does not depend on
//! the order of its records. What is deleted counts in none of this: replicas forget it at different
//! times.

use std::ops::ControlFlow;

use bytes::Bytes;
use reelkv_proto::types::KeyRange;
use xxhash_rust::xxh3::xxh3_64;

use super::{Digest, StoredRecord, TreeError, View};

/// About one key in so many ends a bucket.
const KEYS_TARGET: u64 = 1 << 12;
/// A bucket ends when it holds this many bytes of keys and values.
const BUCKET_BYTES_MAX: u64 = 1 << 20;
/// A reading ends at the first end of a bucket after this many bytes of keys and values.
const READING_BYTES_MAX: u64 = 16 << 20;

/// What a view holds of a range of keys.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bucket {
    /// Its first key.
    pub start: Bytes,
    /// The first key after it; empty for no bound.
    pub end: Bytes,
    /// Live records in it.
    pub records: u64,
    /// Wrapping sum of [`StoredRecord::digest`] over them.
    pub digest: u128,
}

impl Bucket {
    /// Its keys.
    pub fn range(&self) -> KeyRange {
        KeyRange {
            start: self.start.clone(),
            end: self.end.clone(),
        }
    }
}

/// Buckets of a view, side by side, but for those that hold anything the view does not prove.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Buckets {
    /// In key order.
    pub buckets: Vec<Bucket>,
    /// Where the reading ended: the next one goes on there. `None` at the end of what was asked for.
    pub resume: Option<Bytes>,
}

/// Cuts records that come in key order.
///
/// Invariant: each bucket begins where the one before it ended.
struct Cutter {
    start: Bytes,
    sum: Digest,
    /// Whether the open bucket holds anything that is not proven.
    is_void: bool,
    read_bytes: u64,
    cut: Buckets,
}

impl Cutter {
    fn new(start: Bytes) -> Self {
        Self {
            start,
            sum: Digest::default(),
            is_void: false,
            read_bytes: 0,
            cut: Buckets::default(),
        }
    }

    fn add(&mut self, record: &StoredRecord) -> ControlFlow<()> {
        let is_full = self.sum.bytes >= BUCKET_BYTES_MAX;
        if record.key > self.start && (is_full || ends_a_bucket(&record.key)) {
            self.close(record.key.clone());
            if self.read_bytes >= READING_BYTES_MAX {
                self.cut.resume = Some(record.key.clone());
                return ControlFlow::Break(());
            }
        }
        self.sum.add(record);
        self.read_bytes += record.payload_bytes() as u64;
        ControlFlow::Continue(())
    }

    fn close(&mut self, end: Bytes) {
        let start = std::mem::replace(&mut self.start, end.clone());
        let sum = std::mem::take(&mut self.sum);
        if !std::mem::take(&mut self.is_void) {
            self.cut.buckets.push(Bucket {
                start,
                end,
                records: sum.records,
                digest: sum.digest,
            });
        }
    }

    fn finish(mut self, end: Bytes) -> Buckets {
        if self.cut.resume.is_none() {
            self.close(end);
        }
        self.cut
    }
}

fn ends_a_bucket(key: &[u8]) -> bool {
    xxh3_64(key).is_multiple_of(KEYS_TARGET)
}

impl View {
    /// Cuts `range` into buckets, up to a bound in bytes; `proven` are the parts of it that may be read,
    /// in key order. Reads off the caller's thread.
    ///
    /// # Errors
    /// As [`View::scan`].
    pub async fn buckets(&self, range: KeyRange, proven: Vec<KeyRange>) -> Result<Buckets, TreeError> {
        let view = self.clone();
        let job = move || view.cut(range, proven);
        self.tree().inner.offload("cutting buckets", job).await
    }

    fn cut(&self, range: KeyRange, proven: Vec<KeyRange>) -> Result<Buckets, TreeError> {
        let mut cutter = Cutter::new(range.start.clone());
        // The first key that was not passed yet; `None` once everything was.
        let mut reached = Some(range.start);
        for part in proven {
            cutter.is_void |= reached.as_ref() != Some(&part.start);
            self.visit(&part.start, &part.end, &mut |_, record| {
                let record = record?;
                match record.value {
                    Some(_) => Ok(cutter.add(&record)),
                    None => Ok(ControlFlow::Continue(())),
                }
            })?;
            if cutter.cut.resume.is_some() {
                return Ok(cutter.cut);
            }
            reached = (!part.end.is_empty()).then_some(part.end);
        }
        let is_whole = match &reached {
            None => true,
            Some(reached) => !range.end.is_empty() && *reached >= range.end,
        };
        cutter.is_void |= !is_whole;
        Ok(cutter.finish(range.end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u64) -> Bytes {
        Bytes::from(number.to_be_bytes().to_vec())
    }

    fn record(number: u64, value_bytes: usize) -> StoredRecord {
        StoredRecord {
            key: key(number),
            version: number + 1,
            value: Some(vec![7; value_bytes].into()),
            client_crc: 0,
            logged_time_ms: 0,
            expires_at_ms: 0,
        }
    }

    fn cut(records: impl Iterator<Item = StoredRecord>) -> Buckets {
        let mut cutter = Cutter::new(Bytes::new());
        for record in records {
            if cutter.add(&record).is_break() {
                break;
            }
        }
        cutter.finish(Bytes::new())
    }

    /// Buckets lie side by side from the first key on; returns where the last one ends.
    fn side_by_side(cut: &Buckets) -> Bytes {
        let mut reached = Bytes::new();
        for bucket in &cut.buckets {
            assert_eq!(bucket.start, reached);
            assert!(bucket.end.is_empty() || bucket.end > bucket.start);
            reached = bucket.end.clone();
        }
        reached
    }

    #[test]
    fn no_records_are_one_empty_bucket_which_proves_that_there_are_none() {
        let none = cut(std::iter::empty());
        assert_eq!(none.resume, None);
        let [bucket] = &none.buckets[..] else {
            panic!("{none:?}")
        };
        assert_eq!((bucket.records, bucket.digest), (0, 0));
        assert_eq!(bucket.range(), KeyRange::default());
    }

    #[test]
    fn about_one_key_in_four_thousand_ends_a_bucket_and_nothing_is_left_out() {
        let all = cut((0..200_000).map(|number| record(number, 10)));
        assert_eq!((side_by_side(&all), all.resume.as_ref()), (Bytes::new(), None));
        assert_eq!(
            all.buckets.iter().map(|bucket| bucket.records).sum::<u64>(),
            200_000
        );
        assert!((30..70).contains(&all.buckets.len()), "{}", all.buckets.len());
    }

    #[test]
    fn large_records_end_a_bucket_by_their_bytes_and_a_reading_goes_on_where_it_ended() {
        let large = |from: u64| (from..400).map(|number| record(number, 100_000));
        let first = cut(large(0));
        let resume = first.resume.clone().unwrap();
        assert_eq!(side_by_side(&first), resume);
        let bytes = first.buckets.iter().map(|bucket| bucket.records).sum::<u64>() * 100_008;
        assert!((READING_BYTES_MAX..READING_BYTES_MAX + 2 * BUCKET_BYTES_MAX).contains(&bytes));
        for bucket in &first.buckets {
            assert!(bucket.records * 100_008 < BUCKET_BYTES_MAX + 100_008);
        }
        assert!(
            large(0).any(|record| record.key == resume),
            "a reading ends at a key"
        );
    }

    #[test]
    fn one_record_less_changes_its_bucket_and_later_ones_are_cut_alike_again() {
        let whole = cut((0..100_000).map(|number| record(number, 10)));
        for lost in [0, 41, 50_000, 99_999] {
            let rest = (0..100_000).filter(|number| *number != lost);
            let other = cut(rest.map(|number| record(number, 10)));
            let holds = |bucket: &&Bucket| bucket.range().contains(&key(lost));
            let differing: Vec<_> = whole
                .buckets
                .iter()
                .filter(|bucket| !other.buckets.contains(bucket))
                .collect();
            assert!(differing.iter().any(holds), "lost {lost}");
            assert!(differing.len() <= 2, "lost {lost}: {}", differing.len());
        }
    }
}
