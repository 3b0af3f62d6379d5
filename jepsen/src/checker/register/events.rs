//! A register as its judges see it.

/// What a client asked of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// What is the value?
    Read,
    /// Set the value; 0 deletes it.
    Write(u64),
    /// Set the value if it was last written as `expected` (0: if it is absent).
    WriteIf {
        /// The value it must have.
        expected: u64,
        /// The value it gets.
        new: u64,
    },
    /// Nobody's: if the value is still this one, it vanishes. Of unknown outcome, from its time on.
    Expire(u64),
}

/// How it ended for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RegisterOutcome {
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
#[derive(Clone, Copy, Debug)]
pub struct RegisterEvent {
    /// What was asked.
    pub operation: Operation,
    /// How it ended.
    pub outcome: RegisterOutcome,
    /// The version the answer named: written, read, or refused on; 0 when absent.
    pub version: Option<u64>,
    /// When it was invoked, in microseconds.
    pub invoked_us: u64,
    /// When it completed; [`crate::history::NEVER_US`] for an unknown outcome.
    pub completed_us: u64,
}

impl RegisterEvent {
    /// Whether it can have had, or shown, an effect.
    pub fn counts(&self) -> bool {
        match self.outcome {
            RegisterOutcome::Failed => false,
            RegisterOutcome::Unknown => self.operation != Operation::Read,
            _ => true,
        }
    }
}
