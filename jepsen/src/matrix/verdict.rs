//! How a case ends, and why.

use serde::Serialize;

/// How a case ends. Ordered: the worse of two is the greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verdict {
    /// Every criterion held.
    Correct,
    /// Nothing was wrong or lost and everything answered, but it was not repaired or not told in
    /// time: a person is needed.
    Degraded,
    /// Something did not answer though a clean quorum ran, or more waits than what is lost.
    Unavailable,
    /// A wrong answer, or something acknowledged is gone.
    Unsafe,
}

impl Verdict {
    /// All of them, best first.
    pub const ALL: [Self; 4] = [Self::Correct, Self::Degraded, Self::Unavailable, Self::Unsafe];

    /// Its name, as printed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Correct => "CORRECT",
            Self::Degraded => "DEGRADED",
            Self::Unavailable => "UNAVAILABLE",
            Self::Unsafe => "UNSAFE",
        }
    }
}

/// A criterion that did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it makes of the case.
    pub verdict: Verdict,
    /// Which criterion, and what was seen.
    pub why: String,
}

impl Finding {
    /// A wrong answer or a loss.
    pub fn not_safe(why: impl Into<String>) -> Self {
        Self::of(Verdict::Unsafe, why)
    }

    /// Something did not answer.
    pub fn unavailable(why: impl Into<String>) -> Self {
        Self::of(Verdict::Unavailable, why)
    }

    /// Not repaired, or not told.
    pub fn degraded(why: impl Into<String>) -> Self {
        Self::of(Verdict::Degraded, why)
    }

    fn of(verdict: Verdict, why: impl Into<String>) -> Self {
        let why = why.into().replace('\n', " ");
        Self { verdict, why }
    }
}

/// What was measured of a case, in milliseconds since its nodes were started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Times {
    /// When every shard had answered a read and a write.
    pub available_ms: Option<u64>,
    /// When the node noticed the damage, by its ledger.
    pub detected_ms: Option<u64>,
    /// When its status first showed it.
    pub told_ms: Option<u64>,
    /// When nothing was wrong any more and all replicas held the same.
    pub repaired_ms: Option<u64>,
}

/// What came of a case.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Criteria that did not hold.
    pub findings: Vec<Finding>,
    /// When what happened.
    pub times: Times,
    /// What else is to be said of it.
    pub note: String,
}

impl Outcome {
    /// The worst finding's verdict.
    pub fn verdict(&self) -> Verdict {
        let verdicts = self.findings.iter().map(|finding| finding.verdict);
        verdicts.max().unwrap_or(Verdict::Correct)
    }

    /// Adds what did not hold.
    pub fn find(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    /// Why it is not correct, the worst first; else the note.
    pub fn why(&self) -> String {
        if self.findings.is_empty() {
            return self.note.clone();
        }
        let mut findings: Vec<&Finding> = self.findings.iter().collect();
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.verdict));
        let mut whys: Vec<&str> = findings.iter().map(|finding| &finding.why[..]).collect();
        if !self.note.is_empty() {
            whys.push(&self.note);
        }
        whys.join("; ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_finding_decides_and_is_told_first() {
        let mut outcome = Outcome::default();
        assert_eq!(outcome.verdict(), Verdict::Correct);
        outcome.find(Finding::degraded("P5: not told"));
        outcome.find(Finding::not_safe("P1: a wrong\nanswer"));
        outcome.find(Finding::unavailable("P3: no answer"));
        assert_eq!(outcome.verdict(), Verdict::Unsafe);
        assert_eq!(outcome.why(), "P1: a wrong answer; P3: no answer; P5: not told");
    }
}
