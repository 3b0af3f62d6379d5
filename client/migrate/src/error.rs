//! What can go wrong, by what the caller should do about it.

use std::fmt;

use serde::Serialize;

use crate::target::TargetError;

/// Why a table cannot be imported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unsupported {
    /// `schema.table`.
    pub table: String,
    /// The column at fault; none if the table itself is.
    pub column: Option<String>,
    /// What is wrong, for people.
    pub reason: String,
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.column {
            Some(column) => write!(f, "{}, column {column}: {}", self.table, self.reason),
            None => write!(f, "{}: {}", self.table, self.reason),
        }
    }
}

/// An import or a verification that did not end.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// An option is wrong; nothing was done.
    #[error("{0}")]
    InvalidOptions(String),
    /// PostgreSQL cannot be reached, or the connection to it was lost. An import may be run again.
    #[error("cannot talk to PostgreSQL at {server}: {reason}")]
    Connection {
        /// Host, port and database; never the password.
        server: String,
        /// What the system or the server said.
        reason: String,
    },
    /// PostgreSQL refuses this user or password.
    #[error("PostgreSQL at {server} refuses user {user:?}: {reason}")]
    Password {
        /// Host, port and database.
        server: String,
        /// The user that was refused.
        user: String,
        /// What the server said.
        reason: String,
    },
    /// These tables cannot be imported; nothing was copied.
    #[error("{} cannot be imported (nothing was copied):{}", obstacles(.0), list(.0))]
    Unsupported(Vec<Unsupported>),
    /// A table was dropped, truncated, rewritten or repartitioned after the snapshot. Run it again.
    #[error("table {table} changed under the import: {reason}; run it again")]
    TableVanished {
        /// `schema.table`.
        table: String,
        /// What happened to it.
        reason: String,
    },
    /// A row is over the store's limits.
    #[error("table {table}, key {key}: the {what} has {bytes} bytes, the limit is {limit}")]
    RowTooLarge {
        /// `schema.table`.
        table: String,
        /// The key, as JSON.
        key: String,
        /// `key` or `value`.
        what: &'static str,
        /// Its size.
        bytes: usize,
        /// The most that is possible.
        limit: usize,
    },
    /// PostgreSQL answered a query with an error.
    #[error("PostgreSQL, {context}: {reason}")]
    Source {
        /// What was being done, naming the table.
        context: String,
        /// What the server said.
        reason: String,
    },
    /// What PostgreSQL sent cannot be understood. A defect of this program.
    #[error("{context}: {reason}")]
    Decode {
        /// Table and column.
        context: String,
        /// What is wrong with the bytes.
        reason: String,
    },
    /// The store failed. An import may be run again.
    #[error("keyspace {keyspace}: {source}")]
    Target {
        /// The keyspace that was read or written.
        keyspace: String,
        /// What the store said.
        source: TargetError,
    },
}

impl MigrateError {
    pub(crate) fn target(keyspace: &str) -> impl FnOnce(TargetError) -> MigrateError {
        let keyspace = keyspace.to_owned();
        move |source| MigrateError::Target { keyspace, source }
    }
}

fn obstacles(list: &[Unsupported]) -> String {
    match list.len() {
        1 => "1 thing".to_owned(),
        n => format!("{n} things"),
    }
}

fn list(list: &[Unsupported]) -> String {
    list.iter().map(|item| format!("\n  {item}")).collect()
}
