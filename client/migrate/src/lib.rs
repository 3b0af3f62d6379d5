//! The way off a relational database: every table of a running PostgreSQL, copied into ReelKV and proven equal.
//!
//! [`import`] reads all tables under one exported snapshot and makes each keyspace `schema.table` hold exactly the
//! rows of its table. [`verify`] reads the tables again, through other code, and reports every row that is missing,
//! different or extra. Both see the store only through the narrow trait [`Target`].
//!
//! # From a row to a key and a value
//!
//! The key is the primary key as a FoundationDB tuple, columns in the order of the index; `char(n)` loses its
//! trailing blanks, `-0.0` becomes `0.0`, so that what PostgreSQL calls equal is one key. `numeric` has no element
//! type in that layer and gets the user type code `0x40` (see `import/key.rs`). Keys sort as PostgreSQL sorts them,
//! except that text and enum labels sort by their UTF-8 bytes.
//!
//! The value is one format byte ([`FORMAT_CBOR`]) and a CBOR map, column name → value, in the core deterministic
//! encoding of RFC 8949 §4.2.1: shortest forms, definite lengths, map keys in the order of their encoded bytes. Equal
//! rows are equal bytes. [`decode_row`] shows a value as JSON, [`decode_key`] a key.
//!
//! | PostgreSQL | CBOR |
//! |---|---|
//! | NULL | null |
//! | bool | true, false |
//! | int2, int4, int8, oid | integer |
//! | float4, float8 | shortest float that keeps the value; one NaN |
//! | text, varchar, name, char(n) (blanks kept), enum label | text |
//! | bytea | bytes |
//! | uuid | tag 37, 16 bytes |
//! | numeric | tag 60160, text as PostgreSQL prints it: `12.50`, `NaN`, `-Infinity` |
//! | date | tag 60161, days since 2000-01-01; ± infinity are the extremes of 32 bits |
//! | timestamp | tag 60162, microseconds since 2000-01-01; ± infinity are the extremes of 64 bits |
//! | timestamptz | tag 60163, the same, in UTC |
//! | time | tag 60164, microseconds since midnight, `24:00` included |
//! | timetz | tag 60165, array of microseconds since local midnight and seconds east of UTC |
//! | interval | tag 60166, array of months, days, microseconds |
//! | json, jsonb | tag 60167, 60168, text |
//! | array: one dimension from 1, or empty | array, NULL elements as null |
//! | array: any other | tag 60169, array of (lengths, lower bounds, elements in row-major order) |
//! | range, composite, network, geometric, bit, text search, xml, money, … | tag 60170, text as PostgreSQL prints it |
//! | domain | as its base type |
//!
//! Dates and times count from 2000-01-01 because that is PostgreSQL's own epoch: its range, infinities included, fits
//! 64 bits there, and does not when counted from 1970. As keys they are the same integers.
//!
//! A type that is none of these (one that an extension or a user defined in C) is *unsupported*: it is reported,
//! with every other obstacle, before anything is copied.
//!
//! # Consistency, and what a rerun does
//!
//! One transaction exports a snapshot; every other connection adopts it. A *chunk* is a range of the primary key;
//! together the chunks of a table cover every possible key. A chunk is read from both sides in key order and merged:
//! a row the keyspace lacks or holds differently is written, a row the table lacks is deleted. So a chunk that is
//! done equals the snapshot, whatever the keyspace held, and a first import and a rerun are the same code.
//!
//! A killed import loses its snapshot, and the source moves on. A rerun therefore **reads every chunk again under a
//! new snapshot, writes only rows that differ, and deletes rows that are gone**; chunks that an earlier run finished
//! cost reading but hardly any writing. What the keyspace `_migrate` records of a job (its runs, chunks and rows) tells
//! people how far a run got; it is never trusted as a reason to skip a chunk.
//!
//! Some statements do not respect snapshots: after `TRUNCATE`, a rewriting `ALTER TABLE` or a detached partition, an
//! older snapshot sees an empty or smaller table. Each chunk therefore locks its table against them for the time it
//! is read (`ACCESS SHARE`, as any `SELECT` does), compares the table's files and partitions with those the snapshot
//! knows, and fails naming the table if they differ. The lock is released after the chunk: a long import does not
//! hold up the source's other work.

mod client_target;
mod decode;
mod error;
mod import;
mod kind;
mod progress;
mod source;
mod target;
mod verify;

pub use client_target::ClientTarget;
pub use decode::{decode_key, decode_row};
pub use error::{MigrateError, Unsupported};
pub use import::{ImportOptions, ImportReport, PreviousRun, TableImport, import};
pub use progress::{Phase, Progress, ProgressEvent};
pub use target::{MemoryTarget, Row, ScanPage, Target, TargetError, TargetResult};
pub use verify::{
    ColumnDifference, Mismatch, MismatchKind, TableVerify, VerifyOptions, VerifyReport, verify,
};

/// First byte of every imported value: a CBOR map follows.
pub const FORMAT_CBOR: u8 = 0x01;

/// The keyspace that records jobs. It has no dot, so no table can have its name.
pub const STATE_KEYSPACE: &str = "_migrate";

/// The longest key that is imported, in bytes; the store's own limit.
pub const MAX_KEY_BYTES: usize = 4 << 10;

/// The longest value that is imported, in bytes; the store's own limit.
pub const MAX_VALUE_BYTES: usize = 4 << 20;
