//! What clients saw, in the order they saw it.

use serde::Serialize;

/// What a client asked of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum Operation {
    /// What is the value?
    Read,
    /// Set the value.
    Write(u64),
    /// Set the value if it was last written as `expected` (0: if it is absent).
    WriteIf {
        /// The value it must have.
        expected: u64,
        /// The value it gets.
        new: u64,
    },
}

/// How it ended for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum Outcome {
    /// The read's value; 0 when absent.
    Value(u64),
    /// The write happened.
    Done,
    /// The condition did not hold; nothing happened.
    Refused,
    /// Nothing happened, for certain.
    Failed,
    /// It may have happened, then or at any time later.
    Unknown,
}

/// One operation from its invocation to its completion.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Event {
    /// Which client.
    pub client: usize,
    /// Which key.
    pub key: usize,
    /// What was asked.
    pub operation: Operation,
    /// How it ended.
    pub outcome: Outcome,
    /// The version the answer named: written, read (0 when absent), or refused on.
    pub version: Option<u64>,
    /// When it was invoked, in virtual microseconds.
    pub invoked_us: u64,
    /// When it completed; `u64::MAX` for an unknown outcome.
    pub completed_us: u64,
}

impl Event {
    /// Whether it can have had, or shown, an effect.
    pub fn counts(&self) -> bool {
        match self.outcome {
            Outcome::Failed => false,
            Outcome::Unknown => self.operation != Operation::Read,
            _ => true,
        }
    }
}
