//! The pure part of a shard: effects, evaluation, tokens. No I/O, no openraft, no tonic.
//!
//! The shard's leader *evaluates* a request and proposes only what follows from it: numbered
//! [`Effect`](reelkv_proto::v1::Effect)s, coalesced into one [`EntryBody`](reelkv_proto::v1::EntryBody). Every replica *applies* the same
//! effects without reading what it has stored, so a replica with a damaged tree keeps applying
//! and voting, and replicas cannot come to differ.
//!
//! - [`Control`] is the shard's replicated state beside its records; it decides whether an entry
//!   is performed, and what it changes.
//! - [`Incarnations`] remembers executed tokens, so that a write happens at most once.
//! - [`Evaluator`] is the leader's side: applied state plus the effects still in flight.
//! - `time` has the rules of the shard's time, and of what has expired.

mod command;
mod control;
mod evaluator;
mod log_id;
mod overlay;
mod spans;
mod time;
mod tokens;

pub use command::{Command, Write, WriteKind, WriteOperation, WriteResult};
pub use control::{Applied, Control, RecordChange, UnknownEffect};
pub use evaluator::{ColdRead, Evaluation, Evaluator, Found, Refusal};
pub use log_id::LogId;
pub use spans::Spans;
pub use time::{has_expired, majority_time};
pub use tokens::{IncarnationId, Incarnations, TokenState};
