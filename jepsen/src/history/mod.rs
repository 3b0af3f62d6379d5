//! What clients saw, one event per operation, and how it is kept.
//!
//! [`files`] keeps a history as JSON lines, which `check` reads again; [`edn`] writes it in
//! Jepsen's form, so that other checkers can judge it too.

pub mod edn;
pub mod files;
mod recorder;

use std::hash::{DefaultHasher, Hash, Hasher};

use serde::{Deserialize, Serialize};

pub use recorder::Recorder;

/// Time of an outcome that nobody knows: it may take effect at any later moment.
pub const NEVER_US: u64 = u64::MAX;

/// What a client asked for. Keys, groups and elements are numbers; a workload says which stored
/// keys they stand for. Values are unique within a history, and never 0.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "f", rename_all = "kebab-case")]
pub enum Action {
    /// What is the value of a key?
    Read {
        /// The key.
        key: u64,
    },
    /// Set a key.
    Write {
        /// The key.
        key: u64,
        /// Its new value.
        value: u64,
    },
    /// Delete a key.
    Delete {
        /// The key.
        key: u64,
    },
    /// Set a key if its value is still the one that `expected` wrote (0: if it is absent).
    WriteIf {
        /// The key.
        key: u64,
        /// The value it must have.
        expected: u64,
        /// Its new value.
        new: u64,
    },
    /// Set a key for a limited time.
    WriteFor {
        /// The key.
        key: u64,
        /// Its new value.
        value: u64,
        /// How long it lives, in milliseconds.
        ttl_ms: u64,
    },
    /// Add to a counter; the answer is the sum.
    Add {
        /// The counter.
        key: u64,
        /// What is added; above 0.
        delta: i64,
    },
    /// What does a counter show?
    ReadCounter {
        /// The counter.
        key: u64,
    },
    /// Put an element into the set.
    Insert {
        /// The element.
        element: u64,
    },
    /// Which elements does the set hold? Read page by page: not one snapshot.
    ReadSet,
    /// Move an amount between two accounts of a group, if both still have the balances that were read.
    Transfer {
        /// Group of accounts, all in one shard.
        group: u64,
        /// Account that pays.
        from: u64,
        /// Account that is paid.
        to: u64,
        /// How much.
        amount: i64,
    },
    /// What do all accounts of a group hold, in one view?
    ReadBalances {
        /// The group.
        group: u64,
    },
    /// Set all keys of a group to one value, in one batch.
    WriteGroup {
        /// The group.
        group: u64,
        /// Their new value.
        value: u64,
    },
    /// What do the keys of a group hold, as far as one page goes?
    ReadPage {
        /// The group.
        group: u64,
        /// Which page.
        page: u64,
    },
    /// Append to a list, if it is still as it was read.
    Append {
        /// The list.
        key: u64,
        /// What is appended.
        element: u64,
    },
    /// What does a list hold?
    ReadList {
        /// The list.
        key: u64,
    },
    /// Does a shard answer a read and a write?
    Probe {
        /// The shard, counted from 0.
        shard: u64,
    },
}

impl Action {
    /// The name of its kind, as in a stored history.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Read { .. } => "read",
            Self::Write { .. } => "write",
            Self::Delete { .. } => "delete",
            Self::WriteIf { .. } => "write-if",
            Self::WriteFor { .. } => "write-for",
            Self::Add { .. } => "add",
            Self::ReadCounter { .. } => "read-counter",
            Self::Insert { .. } => "insert",
            Self::ReadSet => "read-set",
            Self::Transfer { .. } => "transfer",
            Self::ReadBalances { .. } => "read-balances",
            Self::WriteGroup { .. } => "write-group",
            Self::ReadPage { .. } => "read-page",
            Self::Append { .. } => "append",
            Self::ReadList { .. } => "read-list",
            Self::Probe { .. } => "probe",
        }
    }
}

/// What a client was told.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// It was done.
    Done {
        /// The version it was given, if the answer names one.
        version: Option<u64>,
    },
    /// The key's value; 0 when it is absent.
    Value {
        /// The value.
        value: u64,
        /// Its version, when it is present.
        version: Option<u64>,
    },
    /// The condition did not hold; nothing happened.
    Refused {
        /// The version the key had; 0 when it was absent.
        version: u64,
    },
    /// The sum, or what the counter shows.
    Sum(i64),
    /// Elements in the order they were found.
    List(Vec<u64>),
    /// Accounts and what they hold.
    Balances(Vec<(u64, i64)>),
}

/// How an operation ended for its client.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Answered.
    Ok(Answer),
    /// Nothing happened, for certain; why.
    Fail(String),
    /// It may have happened, then or at any time later; why nobody knows.
    Info(String),
}

/// One operation from its invocation to its completion.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Event {
    /// Which client.
    pub client: u64,
    /// What it asked for.
    pub action: Action,
    /// How that ended.
    pub outcome: Outcome,
    /// When it was invoked, in microseconds since the load began.
    pub invoked_us: u64,
    /// When the client was answered or gave up.
    pub completed_us: u64,
}

impl Event {
    /// Its answer, if it has one.
    pub fn answer(&self) -> Option<&Answer> {
        match &self.outcome {
            Outcome::Ok(answer) => Some(answer),
            _ => None,
        }
    }

    /// Whether it was done, and the client knows it: refused is not done.
    pub fn is_done(&self) -> bool {
        self.answer()
            .is_some_and(|answer| !matches!(answer, Answer::Refused { .. }))
    }

    /// Whether nobody knows if it happened.
    pub fn is_unknown(&self) -> bool {
        matches!(self.outcome, Outcome::Info(_))
    }

    /// When its effect was there at the latest; [`NEVER_US`] if nobody knows.
    pub fn effective_us(&self) -> u64 {
        match self.is_unknown() {
            true => NEVER_US,
            false => self.completed_us,
        }
    }
}

/// A hash that is equal for equal histories.
pub fn fingerprint(history: &[Event]) -> u64 {
    let mut hasher = DefaultHasher::new();
    history.hash(&mut hasher);
    hasher.finish()
}
