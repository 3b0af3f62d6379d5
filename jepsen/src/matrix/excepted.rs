//! Cases that may end DEGRADED, by name, each with its reason: a fault that cannot be told from a state
//! that is right, in bytes which nothing needs any more. None may be UNAVAILABLE or UNSAFE.

use super::report::Row;
use super::{Tier, Verdict};

/// An exception from the bars.
#[derive(Debug)]
pub struct Exception {
    tiers: &'static [Tier],
    /// How what is struck is called; a part of it is enough.
    structure: &'static str,
    /// What happens to it.
    faults: &'static [&'static str],
    /// What the case is found to be: how its findings begin.
    why: &'static str,
    /// Why it may be so.
    pub reason: &'static str,
}

/// All of them.
pub static ALL: &[Exception] = &[
    Exception {
        tiers: &[Tier::T1, Tier::T4],
        structure: "wal last batch",
        faults: &[
            "bit-flip",
            "zeros",
            "junk",
            "other-place",
            "stale",
            "helical-bad-on-one-bit-flip",
            "helical-bad-on-one-zeros",
            "helical-good-on-one-bit-flip",
            "helical-good-on-one-zeros",
        ],
        why: "P5: damage to the wal last batch was not told",
        reason: "no later batch says that it was synced: it looks like a write that a power cut tore, of which nothing was \
                 acknowledged; what it holds is kept twice, or heals from a peer",
    },
    Exception {
        tiers: &[Tier::T1f],
        structure: "ledger of damage",
        faults: &["missing"],
        why: "P5: damage to the ledger of damage was not told",
        reason: "a node that never had anything to tell has no ledger; what it told before is in its log output, and what \
                 is still open is found again at the start",
    },
];

impl Exception {
    fn covers(&self, tier: Tier, structure: &str, fault: &str) -> bool {
        self.tiers.contains(&tier) && structure.contains(self.structure) && self.faults.contains(&fault)
    }

    fn excuses(&self, row: &Row) -> bool {
        let is_it = self.covers(row.tier, &row.structure, &row.fault);
        is_it && row.verdict == Verdict::Degraded && row.why.starts_with(self.why)
    }

    /// How it is called in tables.
    pub fn name(&self) -> String {
        let tiers: Vec<&str> = self.tiers.iter().map(|tier| tier.name()).collect();
        format!("{}/{}/{}", tiers.join("+"), self.faults.join("+"), self.structure)
    }

    /// Whether its cases were run and none of them needed it: it is to be removed.
    pub fn is_obsolete(&self, rows: &[Row]) -> bool {
        let covered = |row: &&Row| self.covers(row.tier, &row.structure, &row.fault);
        rows.iter().any(|row| covered(&row)) && !rows.iter().any(|row| self.excuses(row))
    }
}

/// The exception that a case is.
pub fn of(row: &Row) -> Option<&'static Exception> {
    ALL.iter().find(|exception| exception.excuses(row))
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::row;
    use super::*;

    fn missing_ledger(verdict: Verdict, why: &str) -> Row {
        Row {
            tier: Tier::T1f,
            fault: "missing".to_owned(),
            ..row("ledger of damage", verdict, None, why)
        }
    }

    #[test]
    fn only_the_case_that_is_named_is_excused_and_only_for_its_reason() {
        let why = "P5: damage to the ledger of damage was not told: nothing is in the ledger";
        assert!(of(&missing_ledger(Verdict::Degraded, why)).is_some());
        for other in [
            missing_ledger(Verdict::Unsafe, why),
            missing_ledger(Verdict::Unavailable, why),
            missing_ledger(Verdict::Degraded, "P4: not repaired"),
            Row {
                fault: "half".to_owned(),
                ..missing_ledger(Verdict::Degraded, why)
            },
            Row {
                structure: "watermarks".to_owned(),
                ..missing_ledger(Verdict::Degraded, why)
            },
        ] {
            assert!(of(&other).is_none(), "{other:?}");
        }
    }

    #[test]
    fn an_exception_that_nothing_needs_any_more_is_reported() {
        let why = "P5: damage to the ledger of damage was not told: nothing is in the ledger";
        let needed = missing_ledger(Verdict::Degraded, why);
        let well = missing_ledger(Verdict::Correct, "");
        let is_obsolete = |rows: &[Row]| ALL[1].is_obsolete(rows);
        assert!(!is_obsolete(&[]), "its cases were not run");
        assert!(!is_obsolete(&[well.clone(), needed]));
        assert!(is_obsolete(&[well]));
    }

    #[test]
    fn every_exception_has_a_reason_and_a_name() {
        for exception in ALL {
            assert!(exception.reason.len() > 20, "{exception:?}");
            assert!(!exception.tiers.is_empty() && !exception.faults.is_empty());
            assert!(exception.why.starts_with('P'), "{exception:?}");
        }
    }
}
