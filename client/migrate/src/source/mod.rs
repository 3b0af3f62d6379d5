//! The PostgreSQL side that import and verification share: connections, the catalog, the snapshot. Nothing here reads
//! a column's value.

mod catalog;
mod connect;
mod snapshot;

pub(crate) use catalog::{Table, supported_tables};
pub(crate) use connect::{Server, Session};
pub(crate) use snapshot::Snapshot;

/// An identifier as SQL wants it.
pub(crate) fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A string as SQL wants it; relies on `standard_conforming_strings`, which every session sets.
pub(crate) fn quote_literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
