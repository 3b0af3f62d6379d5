//! Sets of keys, as disjoint half-open ranges.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use reelkv_proto::types::KeyRange;

/// A set of stored keys.
///
/// Invariant: ranges do not overlap or touch, none is empty, and only the last may have no end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spans {
    /// First key of each range, and the first key after it; empty for no bound.
    ranges: BTreeMap<Bytes, Bytes>,
}

impl Spans {
    /// Every key there is.
    pub fn everything() -> Self {
        Self::from(KeyRange::default())
    }

    /// Whether no key is in it.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// How many ranges it is made of.
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Adds a range.
    pub fn add(&mut self, range: &KeyRange) {
        if is_void(range) {
            return;
        }
        let KeyRange { mut start, mut end } = range.clone();
        let touching: Vec<Bytes> = self
            .ranges
            .iter()
            .filter(|(first, after)| {
                let begins_in_reach = end.is_empty() || **first <= end;
                let ends_in_reach = after.is_empty() || **after >= start;
                begins_in_reach && ends_in_reach
            })
            .map(|(first, _)| first.clone())
            .collect();
        for first in touching {
            let Some(after) = self.ranges.remove(&first) else {
                continue;
            };
            start = start.min(first);
            end = later(end, after);
        }
        self.ranges.insert(start, end);
    }

    /// Adds all of another set.
    pub fn extend(&mut self, other: &Spans) {
        other.iter().for_each(|range| self.add(&range));
    }

    /// Its ranges in key order.
    pub fn iter(&self) -> impl Iterator<Item = KeyRange> + '_ {
        self.ranges.iter().map(|(start, end)| KeyRange {
            start: start.clone(),
            end: end.clone(),
        })
    }

    /// Whether a key is in it.
    pub fn contains(&self, key: &[u8]) -> bool {
        let before = self
            .ranges
            .range::<[u8], _>((std::ops::Bound::Unbounded, std::ops::Bound::Included(key)));
        before
            .last()
            .is_some_and(|(_, end)| end.is_empty() || key < &end[..])
    }

    /// Whether any key of a range is in it.
    pub fn intersects(&self, range: &KeyRange) -> bool {
        !is_void(range) && self.iter().any(|own| own.intersect(range).is_some())
    }

    /// The keys that are in both.
    pub fn intersection(&self, other: &Spans) -> Spans {
        let mut both = Spans::default();
        for range in self.iter() {
            for theirs in other.iter() {
                if let Some(shared) = range.intersect(&theirs) {
                    both.add(&shared);
                }
            }
        }
        both
    }

    /// The keys of this set that are not in another.
    pub fn without(&self, other: &Spans) -> Spans {
        self.intersection(&other.complement())
    }

    /// Every key that is not in it.
    pub fn complement(&self) -> Spans {
        let mut rest = Spans::default();
        let mut from = Some(Bytes::new());
        for range in self.iter() {
            if let Some(start) = from.take()
                && start < range.start
            {
                rest.add(&KeyRange {
                    start,
                    end: range.start.clone(),
                });
            }
            from = (!range.end.is_empty()).then_some(range.end);
        }
        if let Some(start) = from {
            rest.add(&KeyRange {
                start,
                end: Bytes::new(),
            });
        }
        rest
    }
}

/// The later of two ends; an empty one is after all others.
fn later(a: Bytes, b: Bytes) -> Bytes {
    match a.is_empty() || b.is_empty() {
        true => Bytes::new(),
        false => a.max(b),
    }
}

fn is_void(range: &KeyRange) -> bool {
    !range.end.is_empty() && range.start >= range.end
}

impl From<KeyRange> for Spans {
    fn from(range: KeyRange) -> Self {
        let mut spans = Self::default();
        spans.add(&range);
        spans
    }
}

impl FromIterator<KeyRange> for Spans {
    fn from_iter<I: IntoIterator<Item = KeyRange>>(ranges: I) -> Self {
        let mut spans = Self::default();
        ranges.into_iter().for_each(|range| spans.add(&range));
        spans
    }
}

impl fmt::Display for Spans {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN_MAX: usize = 4;
        for (position, range) in self.iter().take(SHOWN_MAX).enumerate() {
            let comma = if position == 0 { "" } else { ", " };
            let (start, end) = (range.start.escape_ascii(), range.end.escape_ascii());
            write!(f, "{comma}[{start}, {end})")?;
        }
        match self.len().saturating_sub(SHOWN_MAX) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(start: &'static str, end: &'static str) -> KeyRange {
        KeyRange::new(start, end)
    }

    #[test]
    fn ranges_that_touch_become_one() {
        let spans: Spans = [range("a", "c"), range("m", "p"), range("c", "f")]
            .into_iter()
            .collect();
        let parts: Vec<KeyRange> = spans.iter().collect();
        assert_eq!(parts, [range("a", "f"), range("m", "p")]);
    }

    #[test]
    fn an_empty_end_reaches_everything_behind() {
        let mut spans = Spans::from(range("m", ""));
        spans.add(&range("x", "z"));
        assert_eq!(spans, Spans::from(range("m", "")));
        assert!(spans.contains(&[0xff; 9]) && !spans.contains(b"l"));
        assert_eq!(spans.complement(), Spans::from(range("", "m")));
        assert!(Spans::everything().complement().is_empty());
    }

    #[test]
    fn an_empty_range_holds_no_key() {
        let spans: Spans = [range("b", "b"), range("c", "a")].into_iter().collect();
        assert!(spans.is_empty());
        assert!(!Spans::everything().intersects(&range("b", "b")));
    }

    fn some_ranges() -> impl Strategy<Value = Vec<(u8, u8)>> {
        proptest::collection::vec((0..20_u8, 0..21_u8), 0..6)
    }

    /// Keys are single bytes; an end of 20 stands for none.
    fn spans_of(ranges: &[(u8, u8)]) -> Spans {
        let bound = |end: u8| match end {
            20 => Bytes::new(),
            end => Bytes::from(vec![end]),
        };
        let ranges = ranges.iter().map(|(start, end)| KeyRange {
            start: Bytes::from(vec![*start]),
            end: bound(*end),
        });
        ranges.collect()
    }

    fn is_in(ranges: &[(u8, u8)], key: u8) -> bool {
        ranges
            .iter()
            .any(|(start, end)| key >= *start && (*end == 20 || key < *end))
    }

    proptest! {
        #[test]
        fn spans_are_sets_of_keys(a in some_ranges(), b in some_ranges()) {
            let (left, right) = (spans_of(&a), spans_of(&b));
            for key in 0..20_u8 {
                let (in_a, in_b) = (is_in(&a, key), is_in(&b, key));
                prop_assert_eq!(left.contains(&[key]), in_a);
                prop_assert_eq!(left.complement().contains(&[key]), !in_a);
                prop_assert_eq!(left.intersection(&right).contains(&[key]), in_a && in_b);
                prop_assert_eq!(left.without(&right).contains(&[key]), in_a && !in_b);
                let single = KeyRange::new(vec![key], vec![key, 0]);
                prop_assert_eq!(left.intersects(&single), in_a);
            }
            let mut all = left.clone();
            all.extend(&right);
            for key in 0..20_u8 {
                prop_assert_eq!(all.contains(&[key]), is_in(&a, key) || is_in(&b, key));
            }
            let parts: Vec<KeyRange> = all.iter().collect();
            for pair in parts.windows(2) {
                prop_assert!(!pair[0].end.is_empty() && pair[0].end < pair[1].start);
            }
        }
    }
}
