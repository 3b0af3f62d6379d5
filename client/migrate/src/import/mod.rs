//! Import: plan, then workers that take chunks from one queue.
//!
//! ```text
//! plan      tables, obstacles, counts, split keys, chunks      (one connection, which exports the snapshot)
//! state     the run is recorded in `_migrate`
//! keyspaces one per table, split
//! chunks    N workers, each with a connection that adopted the snapshot: COPY binary → key, value → merge
//! ```

mod binary;
mod cbor;
mod chunk;
mod key;
mod numeric;
mod plan;
mod row;
mod state;
mod throttle;
mod value;
mod workers;

use std::sync::Arc;

use serde::Serialize;

use crate::error::{MigrateError, Unsupported};
use crate::progress::{Phase, Progress, Reporter};
use crate::source::{Server, Snapshot, supported_tables};
use crate::target::Target;
use plan::TablePlan;
pub use state::PreviousRun;
use state::{Job, job_name};
use throttle::Throttle;
use workers::Work;

/// A table has at most five pieces for four shards, and a keyspace is made of at most 1,024.
const SHARDS_MAX: u32 = 800;

/// What to import, and how.
#[derive(Clone, Debug)]
pub struct ImportOptions {
    /// `postgres://user:password@host:port/database`; `?host=/directory` for a socket. Without TLS.
    pub url: String,
    /// Shards the rows are to be spread over: no piece of a keyspace gets more than its share of all rows. 1 to 800.
    pub shards: u32,
    /// Connections that read chunks. At least 1; PostgreSQL needs one more.
    pub parallel: usize,
    /// The most rows read per second over all connections; none: no limit.
    pub max_rows_per_second: Option<u64>,
    /// Leave out tables that cannot be imported, and report them, instead of importing nothing.
    pub skip_unsupported: bool,
    /// Where progress goes.
    pub progress: Progress,
}

impl ImportOptions {
    /// Four connections, no limit, nothing skipped, one shard.
    pub fn new(url: impl Into<String>) -> ImportOptions {
        ImportOptions {
            url: url.into(),
            shards: 1,
            parallel: 4,
            max_rows_per_second: None,
            skip_unsupported: false,
            progress: Progress::Auto,
        }
    }
}

/// What was imported.
#[derive(Clone, Debug, Serialize)]
pub struct ImportReport {
    /// The job, as `_migrate` names it.
    pub job: String,
    /// The number of this run of it, from 1.
    pub run: u64,
    /// The earlier run this one follows, if any.
    pub previous: Option<PreviousRun>,
    /// Host, port and database.
    pub source: String,
    /// The snapshot everything was read under.
    pub snapshot: String,
    /// Every table, by name.
    pub tables: Vec<TableImport>,
    /// What was left out, and why.
    pub skipped: Vec<Unsupported>,
}

impl ImportReport {
    /// Rows of all tables.
    pub fn rows(&self) -> u64 {
        self.tables.iter().map(|table| table.rows).sum()
    }
}

/// What was imported of one table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TableImport {
    /// `schema.table`, the keyspace.
    pub table: String,
    /// Rows under the snapshot; the keyspace now has exactly these.
    pub rows: u64,
    /// Rows that the keyspace lacked or held differently.
    pub written: u64,
    /// Rows of the keyspace that the table does not have.
    pub deleted: u64,
    /// Pieces a new keyspace is split into.
    pub pieces: usize,
}

/// Makes every keyspace equal to its table under one snapshot; see the crate's page for what a rerun does.
///
/// Two imports of one database at the same time spoil each other's snapshots: run one. Reads from the primary key's
/// index or sorts; a table whose key begins with text is one chunk, because the order of its bytes is no index's.
///
/// # Errors
///
/// Nothing is written after [`MigrateError::Unsupported`], [`MigrateError::InvalidOptions`] or a connection that never
/// came about. After any other error, running it again finishes the job.
pub async fn import(options: ImportOptions, target: Arc<dyn Target>) -> Result<ImportReport, MigrateError> {
    if options.parallel == 0 || options.max_rows_per_second == Some(0) {
        let reason = "parallel and max_rows_per_second must be at least 1";
        return Err(MigrateError::InvalidOptions(reason.to_owned()));
    }
    if options.shards == 0 || options.shards > SHARDS_MAX {
        let reason = format!(
            "shards must be between 1 and {SHARDS_MAX}, not {}",
            options.shards
        );
        return Err(MigrateError::InvalidOptions(reason));
    }
    let server = Server::parse(&options.url)?;
    let snapshot = Snapshot::export(&server).await?;
    let (tables, skipped) = supported_tables(&snapshot.session, options.skip_unsupported).await?;
    let name = job_name(&snapshot.session, &tables).await?;
    let plans = plan::plan(&snapshot.session, tables, options.shards).await?;
    let (job, previous) = Job::begin(&*target, name, server.name(), &snapshot.id, &plans).await?;
    if let Some(PreviousRun {
        run,
        finished: false,
        chunks,
        rows,
    }) = &previous
    {
        tracing::info!(
            job = job.name,
            run,
            chunks,
            rows,
            "an earlier run did not finish; finishing its work"
        );
    }
    let reporter = Reporter::new(Phase::Import, options.progress);
    for TablePlan {
        table,
        split_keys,
        rows,
        ..
    } in &plans
    {
        let made = target.ensure_keyspace(&table.name, split_keys.clone()).await;
        made.map_err(MigrateError::target(&table.name))?;
        reporter.begin(&table.name, *rows);
    }
    let throttle = Throttle::new(options.max_rows_per_second);
    let work = Arc::new(Work::new(plans, throttle, reporter, target.clone()));
    workers::run(&work, &snapshot, &job, options.parallel).await?;
    job.finish(&work.plans).await?;
    let tables = work.report();
    let (job, run) = (job.name, job.run);
    Ok(ImportReport {
        job,
        run,
        previous,
        source: server.name().to_owned(),
        snapshot: snapshot.id,
        tables,
        skipped,
    })
}
