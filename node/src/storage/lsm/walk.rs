//! The data blocks of one table, one after the other.
//!
//! A table file begins with its data blocks; index, filter, description and a directory of
//! these follow, which nothing here needs. How the walk goes on behind a bad header is known from
//! the list of [`Stretches`] alone: with a list, each block is proven to be the one that was written there,
//! wherever it is found; without, the walk ends at the first bad header, and its blocks are good
//! only if the checksum of the whole file is.

use std::path::Path;

use bytes::Bytes;

use super::block::{HEADER_BYTES, Header};
use super::reader::{Reader, Source};
use crate::disk::Disk;
use crate::storage::{FileSum, Stretches, TreeError};

/// A block whose bytes are what its header says.
pub(super) struct Block {
    pub header: Header,
    pub contents: Bytes,
}

/// Blocks that follow each other in a table.
pub(super) struct Piece {
    pub offset: u64,
    /// Each block; `None` for a bad one, or for a run of them.
    pub blocks: Vec<Option<Block>>,
    /// How many are bad; of a run, at most.
    pub bad: u64,
}

type Blocks = Vec<Option<Block>>;

/// Invariant: what was taken from the reader are whole pieces, from the beginning of the file on.
pub(super) struct Walk {
    reader: Reader,
    list: Option<Stretches>,
    next: usize,
    ended: bool,
}

impl Walk {
    pub(super) fn open(
        disk: &dyn Disk,
        folder: &Path,
        name: &str,
        source: Source,
        list: Option<Stretches>,
    ) -> Result<Self, TreeError> {
        Ok(Self {
            reader: Reader::open(disk, folder, name, source)?,
            list,
            next: 0,
            ended: false,
        })
    }

    pub(super) fn name(&self) -> &str {
        self.reader.name()
    }

    /// Bytes walked so far.
    pub(super) fn offset(&self) -> u64 {
        self.reader.offset()
    }

    /// The next blocks; `None` behind the last.
    ///
    /// # Errors
    /// The process lacks the means to read. Whatever the bytes are, they are no error.
    pub(super) fn next(&mut self) -> Result<Option<Piece>, TreeError> {
        if self.ended {
            return Ok(None);
        }
        let offset = self.reader.offset();
        let piece = match self.list.take() {
            Some(list) => {
                let piece = self.next_listed(&list);
                self.list = Some(list);
                piece?
            }
            None => self.next_by_header()?,
        };
        Ok(piece.map(|blocks| Piece {
            offset,
            bad: match &blocks[..] {
                [None] => self.list.as_ref().map_or(1, Stretches::blocks_each),
                blocks => blocks.iter().filter(|block| block.is_none()).count() as u64,
            },
            blocks,
        }))
    }

    fn next_listed(&mut self, list: &Stretches) -> Result<Option<Blocks>, TreeError> {
        let place = self.next;
        let Some(stretch) = list.list.get(place) else {
            self.ended = true;
            return Ok(None);
        };
        self.next += 1;
        let bytes = self.reader.take(stretch.bytes as usize)?;
        if bytes.is_none() {
            while self.reader.skip(u64::MAX)? > 0 {} // the file is too short for this one and all that follow
        }
        let blocks = bytes.and_then(|bytes| proven(&bytes, list, place));
        Ok(Some(blocks.unwrap_or_else(|| vec![None])))
    }

    fn next_by_header(&mut self) -> Result<Option<Blocks>, TreeError> {
        let header = self.reader.peek(HEADER_BYTES)?.and_then(Header::parse);
        let block = match header {
            Some(header) if !header.is_data => {
                self.ended = true;
                return Ok(None);
            }
            Some(header) => self.reader.take(header.block_len())?.map(|block| (header, block)),
            None => None,
        };
        let Some((header, block)) = block else {
            self.ended = true;
            return Ok(Some(vec![None]));
        };
        Ok(Some(vec![judge(header, block.slice(HEADER_BYTES..))]))
    }

    /// Passes over up to `max` bytes behind the data blocks. Returns how many; 0 at the end.
    pub(super) fn skip(&mut self, max: u64) -> Result<u64, TreeError> {
        self.reader.skip(max)
    }

    /// Length and checksum of the whole file.
    pub(super) fn finish(self) -> Result<FileSum, TreeError> {
        self.reader.finish()
    }
}

fn judge(header: Header, contents: Bytes) -> Option<Block> {
    header.proves(&contents).then_some(Block { header, contents })
}

/// The blocks in the bytes of a stretch; `None` when their headers are not those that were written.
fn proven(bytes: &Bytes, list: &Stretches, place: usize) -> Option<Blocks> {
    let (mut headers, mut blocks) = (Vec::new(), Vec::new());
    let mut at = 0;
    while at < bytes.len() {
        let header = Header::parse(&bytes[at..]).filter(|header| header.is_data)?;
        let end = at
            .checked_add(header.block_len())
            .filter(|end| *end <= bytes.len())?;
        let contents = bytes.slice(at + HEADER_BYTES..end);
        headers.push(header.stretch()?);
        blocks.push(judge(header, contents));
        at = end;
    }
    list.proves(place, headers).then_some(blocks)
}
