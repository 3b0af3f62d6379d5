//! Verify: both sides read in key order under one snapshot, compared row by row.
//!
//! Nothing that decodes is shared with the importer: rows come as text, not binary; keys are built by a second
//! writing of the tuple layer; stored values are read by a CBOR library, where the importer writes its own.

mod canon;
mod compare;
mod copy_text;
mod text;
mod time;
mod tuple;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use tokio::task::JoinSet;

use crate::error::{MigrateError, Unsupported};
use crate::progress::{Phase, Progress, Reporter};
use crate::source::{Server, Session, Snapshot, Table, supported_tables};
use crate::target::Target;

/// What to verify, and how.
#[derive(Clone, Debug)]
pub struct VerifyOptions {
    /// As for the import.
    pub url: String,
    /// Tables compared at the same time. At least 1; PostgreSQL needs one connection more.
    pub parallel: usize,
    /// Leave out tables that cannot be imported, and report them, instead of failing.
    pub skip_unsupported: bool,
    /// Where progress goes.
    pub progress: Progress,
}

impl VerifyOptions {
    /// Four tables at a time, nothing skipped.
    pub fn new(url: impl Into<String>) -> VerifyOptions {
        VerifyOptions {
            url: url.into(),
            parallel: 4,
            skip_unsupported: false,
            progress: Progress::Auto,
        }
    }
}

/// The outcome of a verification.
#[derive(Clone, Debug, Serialize)]
pub struct VerifyReport {
    /// Whether every keyspace has exactly the rows of its table.
    pub clean: bool,
    /// Host, port and database.
    pub source: String,
    /// Every table, by name.
    pub tables: Vec<TableVerify>,
    /// Names of tables whose keyspace does not exist at all.
    pub missing_keyspaces: Vec<String>,
    /// What was left out, and why.
    pub skipped: Vec<Unsupported>,
}

impl VerifyReport {
    /// Rows of all tables.
    pub fn rows(&self) -> u64 {
        self.tables.iter().map(|table| table.rows).sum()
    }
}

/// How a keyspace compares to its table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TableVerify {
    /// `schema.table`, the keyspace.
    pub table: String,
    /// Rows of the table.
    pub rows: u64,
    /// Rows of the keyspace.
    pub stored_rows: u64,
    /// Whether there is no such keyspace; then all rows are missing.
    pub keyspace_missing: bool,
    /// Rows that only the table has.
    pub missing: u64,
    /// Rows whose values differ.
    pub different: u64,
    /// Rows that only the keyspace has.
    pub extra: u64,
    /// The first of these rows.
    pub mismatches: Vec<Mismatch>,
}

impl TableVerify {
    /// Whether keyspace and table are equal.
    pub fn is_clean(&self) -> bool {
        !self.keyspace_missing && self.missing == 0 && self.different == 0 && self.extra == 0
    }
}

/// A row that is not equal on both sides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mismatch {
    /// In what way.
    pub kind: MismatchKind,
    /// The key, as a JSON array.
    pub key: serde_json::Value,
    /// For a different row: the columns that differ.
    pub columns: Vec<ColumnDifference>,
}

/// How a row is not equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MismatchKind {
    /// Only the table has it.
    Missing,
    /// Both have it, with different values.
    Different,
    /// Only the keyspace has it.
    Extra,
}

/// A column that differs; long values are cut.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ColumnDifference {
    /// The column, or `<value>` if the stored value cannot be read at all.
    pub column: String,
    /// What the table has; none if it has no such column.
    pub source: Option<String>,
    /// What the keyspace has; none if it has no such column.
    pub stored: Option<String>,
}

/// Compares every keyspace with its table under one snapshot. Changes nothing.
///
/// # Errors
///
/// Only what keeps it from comparing; differences are in the report.
pub async fn verify(options: VerifyOptions, target: Arc<dyn Target>) -> Result<VerifyReport, MigrateError> {
    if options.parallel == 0 {
        return Err(MigrateError::InvalidOptions(
            "parallel must be at least 1".to_owned(),
        ));
    }
    let server = Server::parse(&options.url)?;
    let snapshot = Snapshot::export(&server).await?;
    let (tables, skipped) = supported_tables(&snapshot.session, options.skip_unsupported).await?;
    let reporter = Reporter::new(Phase::Verify, options.progress);
    let workers = options.parallel.min(tables.len());
    let queue = Mutex::new(tables.into_iter().collect::<VecDeque<Table>>());
    let work = Arc::new(Work {
        queue,
        reporter,
        target,
    });
    // Dropped at the first error, which stops the others.
    let mut running = JoinSet::new();
    for _ in 0..workers {
        let (session, work) = (snapshot.join().await?, work.clone());
        running.spawn(async move { work.run(&session).await });
    }
    let mut tables = Vec::new();
    while let Some(worker) = running.join_next().await {
        let context = || "a worker of the verification".to_owned();
        let done = worker.map_err(|error| MigrateError::Decode {
            context: context(),
            reason: error.to_string(),
        })??;
        tables.extend(done);
    }
    tables.sort_by(|a, b| a.table.cmp(&b.table));
    let clean = tables.iter().all(TableVerify::is_clean);
    let absent = tables.iter().filter(|table| table.keyspace_missing);
    let missing_keyspaces = absent.map(|table| table.table.clone()).collect();
    Ok(VerifyReport {
        clean,
        source: server.name().to_owned(),
        tables,
        missing_keyspaces,
        skipped,
    })
}

/// What the workers share.
struct Work {
    queue: Mutex<VecDeque<Table>>,
    reporter: Reporter,
    target: Arc<dyn Target>,
}

impl Work {
    async fn run(&self, session: &Session) -> Result<Vec<TableVerify>, MigrateError> {
        let mut done = Vec::new();
        while let Some(table) = self.next() {
            session.hold(&table).await?;
            done.push(compare::table(session, &table, &*self.target, &self.reporter).await?);
            session.release(&table).await?;
            self.reporter.finish(&table.name);
        }
        Ok(done)
    }

    fn next(&self) -> Option<Table> {
        self.queue
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front()
    }
}
