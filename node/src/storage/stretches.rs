//! Which blocks a table is made of, told in few bytes.
//!
//! A *stretch* is a power of two of consecutive blocks: their length together and one sum over their
//! headers. A block's header holds the checksum of its contents, so headers with the recorded sum
//! prove each of their blocks on its own, as the very bytes that were written there: a block of
//! another place, of another file or of the past has another header. Where a header is bad, its
//! whole stretch is unproven; with one block in each, nothing but bad blocks is.

use xxhash_rust::xxh3::xxh3_64;

/// No list is folded further: 2^31 blocks in a stretch are more than any table has.
const BLOCKS_LOG2_MAX: u8 = 31;

/// Consecutive blocks of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// Length of the blocks, headers included.
    pub bytes: u32,
    /// Of one block, the checksum in its header; of more, a sum over those.
    pub sum: u32,
}

/// All data blocks of a table, from its beginning on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stretches {
    /// A stretch holds two to this power of blocks, the last one perhaps fewer.
    pub blocks_log2: u8,
    /// The stretches in order.
    pub list: Vec<Stretch>,
}

impl Stretches {
    /// Every block on its own.
    pub(crate) fn of_blocks(list: Vec<Stretch>) -> Self {
        Self { blocks_log2: 0, list }
    }

    /// Whether a list can have been made here.
    pub(crate) fn is_plausible(&self) -> bool {
        self.blocks_log2 <= BLOCKS_LOG2_MAX && !self.list.is_empty()
    }

    /// The same table in half as many stretches; `None` when lengths do not fit any more.
    pub(crate) fn halved(&self) -> Option<Self> {
        if self.list.len() < 2 || self.blocks_log2 >= BLOCKS_LOG2_MAX {
            return None;
        }
        Some(Self {
            blocks_log2: self.blocks_log2 + 1,
            list: halve(&self.list)?,
        })
    }

    /// At most `max` stretches, if lengths allow it.
    pub(crate) fn shortened(mut self, max: usize) -> Self {
        while self.list.len() > max.max(1) {
            match self.halved() {
                Some(halved) => self = halved,
                None => break,
            }
        }
        self
    }

    /// Blocks of one stretch, at most.
    pub(crate) fn blocks_each(&self) -> u64 {
        1 << self.blocks_log2
    }

    /// Whether blocks with these header checksums are the stretch at `place`.
    pub(crate) fn proves(&self, place: usize, blocks: Vec<Stretch>) -> bool {
        if blocks.is_empty() || blocks.len() as u64 > self.blocks_each() {
            return false;
        }
        let mut folded = blocks;
        for _ in 0..self.blocks_log2 {
            match halve(&folded) {
                Some(halved) => folded = halved,
                None => return false,
            }
        }
        folded.first() == self.list.get(place) && folded.len() == 1
    }
}

fn halve(list: &[Stretch]) -> Option<Vec<Stretch>> {
    let one = |pair: &[Stretch]| {
        let mut sums = Vec::with_capacity(8);
        let mut bytes = 0_u32;
        for stretch in pair {
            sums.extend_from_slice(&stretch.sum.to_le_bytes());
            bytes = bytes.checked_add(stretch.bytes)?;
        }
        let sum = xxh3_64(&sums) as u32;
        Some(Stretch { bytes, sum })
    };
    list.chunks(2).map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(count: u32) -> Vec<Stretch> {
        (0..count)
            .map(|number| Stretch {
                bytes: 4_000 + number,
                sum: number.wrapping_mul(0x9e37_79b9),
            })
            .collect()
    }

    #[test]
    fn a_shorter_list_proves_the_same_blocks_and_no_others() {
        for count in [1, 2, 3, 7, 8, 100] {
            let all = blocks(count);
            for max in [1, 2, 5, 100] {
                let short = Stretches::of_blocks(all.clone()).shortened(max);
                assert!(short.list.len() <= max);
                let each = short.blocks_each() as usize;
                for (place, stretch) in all.chunks(each).enumerate() {
                    assert!(short.proves(place, stretch.to_vec()), "{count} in {max}, {place}");
                    for block in 0..stretch.len() {
                        let mut other = stretch.to_vec();
                        other[block].sum ^= 1 << 7;
                        assert!(!short.proves(place, other));
                    }
                    assert!(!short.proves(place, stretch[1..].to_vec()), "a block is missing");
                    assert!(!short.proves(place + 1, stretch.to_vec()), "another place");
                }
            }
        }
    }

    #[test]
    fn lengths_that_do_not_fit_are_not_added_up() {
        let large = Stretch {
            bytes: u32::MAX - 1,
            sum: 1,
        };
        let list = Stretches::of_blocks(vec![large, large]);
        assert_eq!(list.clone().shortened(1), list);
    }
}
