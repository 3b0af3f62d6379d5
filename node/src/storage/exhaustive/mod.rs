//! Every kind of damage to a small tree, one after the other: nothing wrong is ever believed.

mod subject;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::engine::Found;
use super::error::contain;
use super::sweep::united;
use super::{BadSpan, Mark, StoredRecord, TreeError, lsm};
use crate::disk::{Disk, read_file};
use subject::{Damage, ID, Subject};

const SECTOR_BYTES: usize = 512;
const PAGE_BYTES: usize = 4_096;

/// What was tried, without finding anything wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exhausted {
    /// Damaged trees looked at.
    pub cases: u64,
    /// Of them, those made whole by putting small files back.
    pub healed: u64,
    /// Of them, those refused, and read block by block.
    pub salvaged: u64,
    /// The most keys that one flipped bit in the table with the most blocks cost. (A bit in a small table
    /// above it may cost all: its one block spans the tree, and may hold a newer version of any key.)
    pub lost_by_a_bit_max: u64,
    /// Keys of the tree.
    pub keys: u64,
}

/// Flips every bit of a small tree of engine lsm, cuts each of its files at every length, and fills
/// sectors, pages and blocks with zeros, junk, their neighbours and what another tree has there, and lets
/// reads fail. Each time, the tree is opened as far as its raw files go, and salvaged. Needs a directory for the tree; the
/// damage is done in memory. Takes seconds, and blocks.
///
/// # Errors
/// The first case in which something panicked, a damaged tree passed for whole, a record was wrong, stale or
/// missing outside the bad spans, or a file that could be put back was not.
pub async fn exhaustive(scratch: &Path) -> Result<Exhausted, String> {
    let subject = Subject::build(&scratch.join("one"), "one").await?;
    let other = Subject::build(&scratch.join("other"), "two").await?;
    let mut run = Run {
        subject: &subject,
        other: &other,
        counts: Exhausted {
            keys: subject.records.len() as u64,
            ..Exhausted::default()
        },
    };
    run.small_files()?;
    let tables: Vec<_> = subject.tables().collect();
    for table in &tables {
        run.bits(table)?;
        run.lengths(table)?;
        run.places(table)?;
        run.whole(table)?;
    }
    run.pairs(&tables)?;
    run.refused_reads()?;
    run.weaker_marks(&tables)?;
    Ok(run.counts)
}

struct Run<'a> {
    subject: &'a Subject,
    other: &'a Subject,
    counts: Exhausted,
}

/// What the salvage of a case found.
struct Saved {
    records: BTreeMap<Bytes, StoredRecord>,
    spans: Vec<BadSpan>,
    control: Option<Bytes>,
}

impl<'a> Run<'a> {
    /// Every bit, and every length, of what the log can put back.
    fn small_files(&mut self) -> Result<(), String> {
        let subject = self.subject;
        for (name, bytes) in subject
            .files
            .iter()
            .filter(|(name, _)| !name.starts_with("tables/"))
        {
            for bit in 0..bytes.len() * 8 {
                self.put_back(
                    &format!("bit {bit} of {name}"),
                    &[(name.as_str(), Some(flipped(bytes, bit)))],
                )?;
            }
            for len in 0..bytes.len() {
                let cut = Some(bytes[..len].to_vec());
                self.put_back(&format!("{name} cut at {len}"), &[(name.as_str(), cut)])?;
            }
            let others = self.other.files.get(name).cloned();
            if others.as_ref() != Some(bytes) {
                self.put_back(&format!("{name} of another tree"), &[(name.as_str(), others)])?;
            }
            self.put_back(&format!("{name} gone"), &[(name.as_str(), None)])?;
        }
        let small = subject.files.keys().filter(|name| !name.starts_with("tables/"));
        let all: Vec<_> = small.map(|name| (name.as_str(), None)).collect();
        self.put_back("all small files gone", &all)
    }

    fn put_back(&mut self, case: &str, damage: Damage<'_>) -> Result<(), String> {
        let Subject {
            mark, folder, files, ..
        } = self.subject;
        let wrong = |problem: String| Err(format!("{case}: {problem}"));
        let disk = self.subject.damaged(damage)?;
        match check(&*disk, folder, Some(mark)) {
            Ok(healed) if healed.len() == damage.len() => {}
            outcome => return wrong(format!("not put back: {outcome:?}")),
        }
        for (name, bytes) in files {
            if read_file(&*disk, &folder.join(name)).ok().as_ref() != Some(bytes) {
                return wrong(format!("{name} is not what it was"));
            }
        }
        // Without the recorded bytes there is nothing to put back, and nothing is taken for whole.
        let bare = Mark {
            contents: Vec::new(),
            ..mark.clone()
        };
        let refused = check(&*self.subject.damaged(damage)?, folder, Some(&bare));
        if !refused.is_err_and(|error| error.sets_tree_aside()) {
            return wrong("passed for whole".to_owned());
        }
        self.counts.cases += 1;
        self.counts.healed += 1;
        Ok(())
    }

    fn bits(&mut self, table: &str) -> Result<(), String> {
        let bytes = self.bytes(table);
        for bit in 0..bytes.len() * 8 {
            let damage = [(table, Some(flipped(bytes, bit)))];
            let saved = self.salvage(format_args!("bit {bit} of {table}"), &damage, &self.subject.mark)?;
            let lost = self.subject.records.keys().filter(|key| saved.lost(key)).count() as u64;
            if table == self.subject.largest() {
                self.counts.lost_by_a_bit_max = self.counts.lost_by_a_bit_max.max(lost);
            }
            if bit % 8 == 0 {
                self.refused(format_args!("bit {bit} of {table}"), &damage)?;
            }
        }
        Ok(())
    }

    fn lengths(&mut self, table: &str) -> Result<(), String> {
        let bytes = self.bytes(table);
        for len in 0..bytes.len() {
            let damage = [(table, Some(bytes[..len].to_vec()))];
            self.judge(format_args!("{table} cut at {len}"), &damage)?;
        }
        Ok(())
    }

    /// Sectors, pages and blocks with something else in them.
    fn places(&mut self, table: &str) -> Result<(), String> {
        let bytes = self.bytes(table);
        let of = |size: usize| {
            (0..bytes.len())
                .step_by(size)
                .map(move |at| at..(at + size).min(bytes.len()))
        };
        let blocks = self.subject.blocks(table);
        let places: Vec<_> = of(SECTOR_BYTES)
            .chain(of(PAGE_BYTES))
            .chain(blocks.clone())
            .collect();
        for place in &places {
            let junk = (0..).flat_map(|seed| xxh3_64_with_seed(table.as_bytes(), seed).to_le_bytes());
            let there = self
                .other
                .files
                .get(table)
                .and_then(|other| other.get(place.clone()));
            let mut fillings = vec![
                ("zeros", vec![0; place.len()]),
                ("junk", junk.take(place.len()).collect()),
            ];
            fillings.extend(there.map(|there| ("what another tree has there", there.to_vec())));
            for from in &places {
                fillings.push(("another place", bytes[from.clone()].to_vec()));
            }
            for (what, filling) in fillings {
                self.judge(
                    format_args!("{table} at {place:?}: {what}, {} bytes", filling.len()),
                    &[(table, Some(overwritten(bytes, place.start, &filling)))],
                )?;
            }
        }
        for (one, two) in pairs(&blocks) {
            let mut swapped = bytes[..one.start].to_vec();
            for part in [two.clone(), one.end..two.start, one.clone(), two.end..bytes.len()] {
                swapped.extend_from_slice(&bytes[part]);
            }
            self.judge(
                format_args!("{table}: blocks {one:?} and {two:?} swapped"),
                &[(table, Some(swapped))],
            )?;
        }
        Ok(())
    }

    fn whole(&mut self, table: &str) -> Result<(), String> {
        let bytes = self.bytes(table);
        let shifted = [&[0], bytes].concat();
        let longer = [bytes, bytes].concat();
        let mut wholes = vec![
            ("gone".to_owned(), None),
            ("shifted".to_owned(), Some(shifted)),
            ("twice".to_owned(), Some(longer)),
            ("of another tree".to_owned(), self.other.files.get(table).cloned()),
        ];
        for (name, other) in self.subject.files.iter().filter(|(name, _)| *name != table) {
            wholes.push((format!("is {name}"), Some(other.clone())));
        }
        for (what, whole) in wholes {
            self.judge(format_args!("{table} {what}"), &[(table, whole)])?;
        }
        Ok(())
    }

    /// Damage in two tables at once.
    fn pairs(&mut self, tables: &[&str]) -> Result<(), String> {
        for (one, two) in pairs(tables) {
            let (of_one, of_two) = (self.bytes(one), self.bytes(two));
            for at in (0..of_one.len()).step_by(97) {
                let damage = [
                    (one, Some(flipped(of_one, at * 8))),
                    (two, Some(flipped(of_two, at * 8 % (of_two.len() * 8)))),
                ];
                self.judge(format_args!("byte {at} of {one} and of {two}"), &damage)?;
            }
            self.judge(format_args!("{one} and {two} gone"), &[(one, None), (two, None)])?;
        }
        Ok(())
    }

    /// A device that does not give back what it holds.
    fn refused_reads(&mut self) -> Result<(), String> {
        for (seed, per_mille) in (1..=400).zip([30, 200, 600, 1_000].into_iter().cycle()) {
            let case = format_args!("{per_mille} of 1000 reads refused, seed {seed}");
            let disk = self.subject.refusing(per_mille, seed)?;
            self.salvage_from(&*disk, case, &self.subject.mark)?;
            let disk = self.subject.refusing(per_mille, seed)?;
            let Subject { mark, folder, .. } = self.subject;
            match check(&*disk, folder, Some(mark)) {
                Ok(_) => {}
                Err(error) if error.sets_tree_aside() || error.poisons_disk() => {}
                Err(error) => return Err(format!("{case}: {error}")),
            }
        }
        Ok(())
    }

    /// Marks that know less: in longer stretches, or nothing.
    fn weaker_marks(&mut self, tables: &[&str]) -> Result<(), String> {
        let mut mark = self.subject.mark.clone();
        for knowing in ["two blocks in a stretch", "four", "nothing of tables"] {
            if knowing == "nothing of tables" {
                mark.tables.clear();
            }
            for table in &mut mark.tables {
                table.stretches = table.stretches.halved().unwrap_or(table.stretches.clone());
            }
            for table in tables {
                let bytes = self.bytes(table);
                for at in (0..bytes.len()).step_by(41) {
                    let damage = [(*table, Some(flipped(bytes, at * 8)))];
                    self.salvage(format_args!("byte {at} of {table}, {knowing}"), &damage, &mark)?;
                }
                for block in self.subject.blocks(table) {
                    let other = self
                        .other
                        .files
                        .get(*table)
                        .and_then(|other| other.get(block.clone()));
                    let filling = other.unwrap_or_default();
                    let damage = [(*table, Some(overwritten(bytes, block.start, filling)))];
                    self.salvage(
                        format_args!("{table} at {block:?}: another tree's, {knowing}"),
                        &damage,
                        &mark,
                    )?;
                }
            }
        }
        Ok(())
    }

    fn bytes(&self, table: &str) -> &'a [u8] {
        self.subject
            .files
            .get(table)
            .map(Vec::as_slice)
            .unwrap_or_default()
    }

    /// A damaged table is refused, and what is saved of it is right.
    fn judge(&mut self, case: fmt::Arguments<'_>, damage: Damage<'_>) -> Result<(), String> {
        let same = |(name, bytes): &(&str, Option<Vec<u8>>)| self.subject.files.get(*name) == bytes.as_ref();
        if damage.iter().all(same) {
            return Ok(()); // it happens to be what was there
        }
        self.refused(case, damage)?;
        self.salvage(case, damage, &self.subject.mark).map(drop)
    }

    fn refused(&self, case: fmt::Arguments<'_>, damage: Damage<'_>) -> Result<(), String> {
        let disk = self.subject.damaged(damage)?;
        match check(&*disk, &self.subject.folder, Some(&self.subject.mark)) {
            Err(error) if error.sets_tree_aside() => Ok(()),
            outcome => Err(format!("{case}: passed for whole: {outcome:?}")),
        }
    }

    fn salvage(
        &mut self,
        case: fmt::Arguments<'_>,
        damage: Damage<'_>,
        mark: &Mark,
    ) -> Result<Saved, String> {
        let disk = self.subject.damaged(damage)?;
        self.salvage_from(&*disk, case, mark)
    }

    fn salvage_from(
        &mut self,
        disk: &dyn Disk,
        case: fmt::Arguments<'_>,
        mark: &Mark,
    ) -> Result<Saved, String> {
        let read = || lsm::salvage(disk, &self.subject.folder, mark).and_then(read_all);
        let saved = contain("salvaging", read).map_err(TreeError::from);
        let saved = saved.map_err(|error| format!("{case}: {error}"))?;
        for (key, expected) in &self.subject.records {
            let problem = match (saved.records.get(key), saved.lost(key)) {
                (None, true) => continue,
                (Some(_), true) => "is there, and in a bad span",
                (Some(found), false) if found == expected => continue,
                (Some(_), false) => "is not what was written",
                (None, false) if expected.value.is_none() => continue,
                (None, false) => "is missing, and in no bad span",
            };
            return Err(format!("{case}: {} {problem}", key.escape_ascii()));
        }
        if saved
            .records
            .keys()
            .any(|key| !self.subject.records.contains_key(key))
        {
            return Err(format!("{case}: a record that was never written"));
        }
        if saved
            .control
            .as_ref()
            .is_some_and(|control| **control != *b"control")
        {
            return Err(format!("{case}: another control state"));
        }
        self.counts.cases += 1;
        self.counts.salvaged += 1;
        Ok(saved)
    }
}

impl Saved {
    fn lost(&self, key: &[u8]) -> bool {
        self.spans.iter().any(|span| span.holds(key))
    }
}

fn read_all(salvage: impl super::engine::Remains) -> Result<Saved, TreeError> {
    let mut salvage = Box::new(salvage);
    let mut records = BTreeMap::new();
    while let Some(record) = salvage.next()? {
        records.insert(record.key.clone(), record);
    }
    let Found { control, gaps, .. } = salvage.finish();
    Ok(Saved {
        records,
        spans: united(gaps).into_iter().map(BadSpan::from).collect(),
        control,
    })
}

fn check(disk: &dyn Disk, folder: &Path, mark: Option<&Mark>) -> Result<Vec<TreeError>, TreeError> {
    Ok(contain("checking", || lsm::check_folder(disk, folder, ID, mark))?)
}

fn flipped(bytes: &[u8], bit: usize) -> Vec<u8> {
    let mut flipped = bytes.to_vec();
    flipped[bit / 8] ^= 1 << (bit % 8);
    flipped
}

fn overwritten(bytes: &[u8], at: usize, filling: &[u8]) -> Vec<u8> {
    let mut written = bytes.to_vec();
    let len = filling.len().min(bytes.len() - at);
    written[at..at + len].copy_from_slice(&filling[..len]);
    written
}

fn pairs<T: Clone>(of: &[T]) -> Vec<(T, T)> {
    let mut pairs = Vec::new();
    for (place, one) in of.iter().enumerate() {
        pairs.extend(of[place + 1..].iter().map(|two| (one.clone(), two.clone())));
    }
    pairs
}
