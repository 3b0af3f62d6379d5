//! The pure part of a shard: effects, evaluation, tokens. No I/O, no openraft, no tonic.

mod log_id;

pub use log_id::LogId;
