//! Tuples as text.

/// What is wrong with a key written as text, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message} at byte {position} of the key")]
pub struct TextError {
    /// Byte of the text at which it went wrong, from 0.
    pub position: usize,
    /// What was expected or found.
    pub message: String,
}
