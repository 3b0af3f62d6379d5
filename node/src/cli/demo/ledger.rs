//! What the cluster has promised: every acknowledged write, and the judgement of what is read.
//!
//! Each row has one writer, which sends one write at a time. A write makes the row's next revision;
//! an acknowledgement binds the cluster to it. What a reader may find is then
//!
//! ```text
//!   acknowledged when the read began  ≤  revision found  ≤  sent when the read ended
//! ```
//!
//! and, for a revision that was acknowledged, with the version the cluster gave it.

use std::collections::HashSet;

use reelkv_client::Version;

use super::data::RowIndex;

/// A write the cluster said was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Acknowledged {
    pub revision: u32,
    pub version: Version,
}

/// What is known of one row.
#[derive(Clone, Copy, Debug, Default)]
struct Row {
    acknowledged: Option<Acknowledged>,
    /// Writes begun so far: revisions below it may exist.
    begun: u32,
}

/// What somebody read of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing.
    Absent,
    /// A value the data set has for this row, and its version.
    Revision { revision: u32, version: Version },
    /// Something nobody wrote there.
    Foreign,
}

/// What to think of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Judgement {
    /// As promised.
    Right,
    /// An acknowledged write is not there.
    Lost,
    /// Something was returned that was never written, or not under that version.
    Wrong,
}

/// A read's lower bound: what had been acknowledged when it began.
#[derive(Clone, Copy, Debug)]
pub(super) struct Floor(Option<Acknowledged>);

/// All rows. Invariant: of each row, the acknowledged revision is below `begun`.
#[derive(Debug)]
pub(super) struct Ledger {
    rows: Vec<Row>,
    acknowledged_writes: u64,
    lost: HashSet<RowIndex>,
    wrong: u64,
    failed: u64,
    /// The first few things that went wrong, in words.
    remarks: Vec<String>,
}

/// Remarks kept.
const REMARKS_MAX: usize = 8;

impl Ledger {
    /// A ledger of rows nobody has written.
    pub fn new(rows: usize) -> Self {
        Self {
            rows: vec![Row::default(); rows],
            acknowledged_writes: 0,
            lost: HashSet::new(),
            wrong: 0,
            failed: 0,
            remarks: Vec::new(),
        }
    }

    /// The row's writer is about to send its next revision; which one it is.
    pub fn begin_write(&mut self, row: RowIndex) -> u32 {
        let revision = self.rows[row].begun;
        self.rows[row].begun += 1;
        revision
    }

    /// The write begun last was acknowledged. Versions of a row must rise.
    pub fn acknowledge(&mut self, row: RowIndex, revision: u32, version: Version) {
        let entry = &mut self.rows[row];
        assert_eq!(
            revision + 1,
            entry.begun,
            "a row has one writer and one write at a time"
        );
        let before = entry.acknowledged.replace(Acknowledged { revision, version });
        self.acknowledged_writes += 1;
        if before.is_some_and(|before| before.version >= version) {
            self.wrong(format!(
                "row {row}: version {version} of a later write does not exceed {before:?}"
            ));
        }
    }

    /// The write begun last failed; whether it was done stays open.
    pub fn fail(&mut self, what: String) {
        self.failed += 1;
        self.remark(what);
    }

    /// Something was acknowledged outside the rows (an addition to a counter).
    pub fn acknowledge_other(&mut self) {
        self.acknowledged_writes += 1;
    }

    /// The row's last acknowledged write, if no later one was begun.
    pub fn settled(&self, row: RowIndex) -> Option<Acknowledged> {
        let entry = &self.rows[row];
        entry.acknowledged.filter(|last| last.revision + 1 == entry.begun)
    }

    /// To be taken before a read is sent.
    pub fn floor(&self, row: RowIndex) -> Floor {
        Floor(self.rows[row].acknowledged)
    }

    /// Judges a read that began at `floor` and has just ended. `deletes` says which revisions are deletions.
    pub fn judge(
        &self,
        row: RowIndex,
        Floor(floor): Floor,
        found: Found,
        deletes: impl Fn(u32) -> bool,
    ) -> Judgement {
        let Row { acknowledged, begun } = self.rows[row];
        let least = floor.map_or(0, |floor| floor.revision);
        match found {
            Found::Foreign => Judgement::Wrong,
            Found::Absent => match floor.is_none() || (least..begun).any(deletes) {
                true => Judgement::Right,
                false => Judgement::Lost,
            },
            Found::Revision { revision, .. } if revision >= begun => Judgement::Wrong,
            Found::Revision { revision, .. } if revision < least => Judgement::Lost,
            Found::Revision { revision, version } => {
                let known = [floor, acknowledged]
                    .into_iter()
                    .flatten()
                    .find(|known| known.revision == revision);
                match known.is_none_or(|known| known.version == version) {
                    true => Judgement::Right,
                    false => Judgement::Wrong,
                }
            }
        }
    }

    /// Counts what a live read found. A live read that misses an acknowledged write is a wrong read.
    pub fn count_read(&mut self, row: RowIndex, floor: Floor, found: Found, deletes: impl Fn(u32) -> bool) {
        let judgement = self.judge(row, floor, found, deletes);
        if judgement != Judgement::Right {
            let entry = self.rows[row];
            self.wrong(format!(
                "read of row {row}: {judgement:?}, found {found:?}, {floor:?}, {entry:?}"
            ));
        }
    }

    /// Counts what was found at the end, when nothing is being written; `place` is for the remark.
    pub fn count_final(&mut self, row: RowIndex, found: Found, deletes: impl Fn(u32) -> bool, place: &str) {
        match self.judge(row, self.floor(row), found, deletes) {
            Judgement::Right => {}
            Judgement::Lost => {
                let entry = self.rows[row];
                self.lose(
                    row,
                    format!("{place}, row {row}: {found:?} where {entry:?} was acknowledged"),
                );
            }
            Judgement::Wrong => {
                let entry = self.rows[row];
                self.wrong(format!(
                    "{place}, row {row}: {found:?} was never written, {entry:?}"
                ));
            }
        }
    }

    /// Counts a lost write, once for each `row`; numbers past the rows are for what is none.
    pub fn lose(&mut self, row: RowIndex, what: String) {
        if self.lost.insert(row) {
            self.remark(what);
        }
    }

    /// Counts a wrong answer of another kind.
    pub fn wrong(&mut self, what: String) {
        self.wrong += 1;
        self.remark(what);
    }

    /// How many writes were acknowledged.
    pub fn acknowledged_writes(&self) -> u64 {
        self.acknowledged_writes
    }

    /// How many rows do not have their last acknowledged write.
    pub fn lost_writes(&self) -> u64 {
        self.lost.len() as u64
    }

    /// How many answers were wrong.
    pub fn wrong_reads(&self) -> u64 {
        self.wrong
    }

    /// How many requests failed.
    pub fn failed_requests(&self) -> u64 {
        self.failed
    }

    /// The first few things that went wrong, in words.
    pub fn remarks(&self) -> &[String] {
        &self.remarks
    }

    fn remark(&mut self, what: String) {
        if self.remarks.len() < REMARKS_MAX {
            self.remarks.push(what);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEVER: fn(u32) -> bool = |_| false;

    fn at(revision: u32, version: Version) -> Found {
        Found::Revision { revision, version }
    }

    /// Row 0 with revisions 0 and 1 acknowledged as versions 10 and 20, and `unknown` failed writes after.
    fn ledger(unknown: u32) -> Ledger {
        let mut ledger = Ledger::new(1);
        for version in [10, 20] {
            let revision = ledger.begin_write(0);
            ledger.acknowledge(0, revision, version);
        }
        (0..unknown).for_each(|_| {
            ledger.begin_write(0);
        });
        ledger
    }

    #[test]
    fn found_against_promised() {
        use Judgement::*;
        let cases = [
            ("the last write", 0, at(1, 20), Right),
            ("the write before it", 0, at(0, 10), Lost),
            ("nothing", 0, Found::Absent, Lost),
            ("something foreign", 0, Found::Foreign, Wrong),
            ("a revision never sent", 0, at(2, 30), Wrong),
            ("the last write under another version", 0, at(1, 21), Wrong),
            ("a write of unknown outcome that happened", 2, at(3, 30), Right),
            ("a write of unknown outcome that did not", 1, at(1, 20), Right),
            ("older than the last although one is unknown", 1, at(0, 10), Lost),
        ];
        for (name, unknown, found, expected) in cases {
            let ledger = ledger(unknown);
            assert_eq!(ledger.judge(0, ledger.floor(0), found, NEVER), expected, "{name}");
        }
    }

    #[test]
    fn a_deletion_must_be_seen_and_only_a_deletion_may_be() {
        let ledger = ledger(0);
        let floor = ledger.floor(0);
        assert_eq!(
            ledger.judge(0, floor, Found::Absent, |revision| revision == 1),
            Judgement::Right
        );
        assert_eq!(
            ledger.judge(0, floor, Found::Absent, |revision| revision == 0),
            Judgement::Lost
        );
    }

    #[test]
    fn a_live_read_may_find_what_was_written_while_it_ran_but_nothing_older_than_its_start() {
        let mut ledger = Ledger::new(1);
        ledger.begin_write(0);
        ledger.acknowledge(0, 0, 10);
        let floor = ledger.floor(0);
        ledger.begin_write(0);
        ledger.acknowledge(0, 1, 20);
        for found in [at(0, 10), at(1, 20)] {
            assert_eq!(ledger.judge(0, floor, found, NEVER), Judgement::Right);
        }
        assert_eq!(
            ledger.judge(0, ledger.floor(0), at(0, 10), NEVER),
            Judgement::Lost
        );
        assert_eq!(ledger.judge(0, floor, at(0, 11), NEVER), Judgement::Wrong);
    }

    #[test]
    fn a_row_lost_on_three_replicas_is_one_lost_write() {
        let mut ledger = ledger(0);
        (0..3).for_each(|_| ledger.count_final(0, Found::Absent, NEVER, "n1"));
        assert_eq!(
            (
                ledger.lost_writes(),
                ledger.wrong_reads(),
                ledger.acknowledged_writes()
            ),
            (1, 0, 2)
        );
        assert_eq!(ledger.remarks().len(), 1);
    }

    #[test]
    fn a_version_that_does_not_rise_is_wrong() {
        let mut ledger = ledger(0);
        let revision = ledger.begin_write(0);
        ledger.acknowledge(0, revision, 20);
        assert_eq!(ledger.wrong_reads(), 1);
    }

    #[test]
    fn a_row_with_a_write_of_unknown_outcome_is_not_settled() {
        assert_eq!(
            ledger(0).settled(0),
            Some(Acknowledged {
                revision: 1,
                version: 20
            })
        );
        assert_eq!(ledger(1).settled(0), None);
    }
}
