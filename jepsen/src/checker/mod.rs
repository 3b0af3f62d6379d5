//! Judges of histories. Each answers with a [`Verdict`]; only [`Verdict::Pass`] is a pass.

pub mod append;
pub mod availability;
pub mod bank;
pub mod counter;
pub mod pages;
pub mod register;
pub mod set;
mod show;

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a judge says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "verdict")]
pub enum Verdict {
    /// Everything it looks at held.
    Pass,
    /// Something did not hold.
    Fail {
        /// What, each in a line a person can act on. Never empty.
        findings: Vec<String>,
    },
    /// It could not tell.
    Unknown {
        /// Why.
        reason: String,
    },
}

impl Verdict {
    /// Pass, if nothing was found.
    pub fn of(findings: Vec<String>) -> Self {
        match findings.is_empty() {
            true => Self::Pass,
            false => Self::Fail { findings },
        }
    }

    /// Fail, with one finding.
    pub fn fail(finding: impl Into<String>) -> Self {
        Self::of(vec![finding.into()])
    }

    /// Whether it is a pass.
    pub fn is_pass(&self) -> bool {
        *self == Self::Pass
    }

    /// Whether something did not hold.
    pub fn is_fail(&self) -> bool {
        matches!(self, Self::Fail { .. })
    }

    /// Both together: a failure outweighs not knowing, and not knowing outweighs a pass.
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Fail { mut findings }, Self::Fail { findings: more }) => {
                findings.extend(more);
                Self::Fail { findings }
            }
            (fail @ Self::Fail { .. }, _) | (_, fail @ Self::Fail { .. }) => fail,
            (unknown @ Self::Unknown { .. }, _) | (_, unknown @ Self::Unknown { .. }) => unknown,
            (Self::Pass, Self::Pass) => Self::Pass,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pass => "pass",
            Self::Fail { .. } => "FAIL",
            Self::Unknown { .. } => "unknown",
        })
    }
}
