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

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use tokio::task::JoinSet;

use crate::error::{MigrateError, Unsupported};
use crate::progress::{Phase, Progress, Reporter};
use crate::source::{Server, Session, Snapshot, supported_tables};
use crate::target::Target;
use chunk::{ChunkCopier, ChunkResult};
use plan::{Chunk, TablePlan};
pub use state::PreviousRun;
use state::{Job, job_name};
use throttle::Throttle;

/// What to import, and how.
#[derive(Clone, Debug)]
pub struct ImportOptions {
    /// `postgres://user:password@host:port/database`; `?host=/directory` for a socket.
    pub url: String,
    /// Shards the rows are to be spread over: no piece of a keyspace gets more than its share of all rows. At least 1.
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

struct TableState {
    result: ChunkResult,
    chunks_left: usize,
}

/// What the workers share.
struct Work {
    plans: Vec<TablePlan>,
    queue: Mutex<VecDeque<Chunk>>,
    states: Mutex<Vec<TableState>>,
    throttle: Throttle,
    reporter: Reporter,
    target: Arc<dyn Target>,
}

/// Makes every keyspace equal to its table under one snapshot; see the crate's page for what a rerun does.
///
/// # Errors
///
/// Nothing is written after [`MigrateError::Unsupported`], [`MigrateError::InvalidOptions`] or a connection that never
/// came about. After any other error, running it again finishes the job.
pub async fn import(options: ImportOptions, target: Arc<dyn Target>) -> Result<ImportReport, MigrateError> {
    if options.shards == 0 || options.parallel == 0 || options.max_rows_per_second == Some(0) {
        let reason = "shards, parallel and max_rows_per_second must be at least 1";
        return Err(MigrateError::InvalidOptions(reason.to_owned()));
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
    let states = plans.iter().map(|plan| TableState {
        result: ChunkResult::default(),
        chunks_left: plan.chunks.len(),
    });
    let work = Arc::new(Work {
        states: Mutex::new(states.collect()),
        queue: Mutex::new(spread(&plans)),
        plans,
        throttle: Throttle::new(options.max_rows_per_second),
        reporter,
        target: target.clone(),
    });
    run_workers(&work, &snapshot, &job, options.parallel).await?;
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

/// All chunks, the largest tables first, their chunks far apart: neighbours on the queue write to different shards.
fn spread(plans: &[TablePlan]) -> VecDeque<Chunk> {
    let mut chunks: Vec<(usize, Chunk)> = Vec::new();
    for plan in plans {
        let most = plan.chunks.len();
        chunks.extend(
            plan.chunks
                .iter()
                .map(|chunk| ((chunk.number * 7919) % most.max(1), chunk.clone())),
        );
    }
    chunks.sort_by_key(|(place, chunk)| (std::cmp::Reverse(plans[chunk.table].rows), *place, chunk.number));
    chunks.into_iter().map(|(_, chunk)| chunk).collect()
}

async fn run_workers(
    work: &Arc<Work>,
    snapshot: &Snapshot,
    job: &Job<'_>,
    parallel: usize,
) -> Result<(), MigrateError> {
    let chunks = work.plans.iter().map(|plan| plan.chunks.len()).sum();
    let (done, mut finished) = tokio::sync::mpsc::channel(parallel);
    // Dropped at the first error, which stops the others.
    let mut workers = JoinSet::new();
    for _ in 0..parallel.min(chunks) {
        let (session, work, done) = (snapshot.join().await?, work.clone(), done.clone());
        workers.spawn(async move { work.run(&session, &done).await });
    }
    drop(done);
    loop {
        tokio::select! {
            Some((chunk, result)) = finished.recv() => {
                let (chunk, ChunkResult { rows, written, deleted }): (Chunk, ChunkResult) = (chunk, result);
                job.chunk_done(&work.plans[chunk.table].table.name, chunk.number, rows, written, deleted).await?;
            }
            Some(worker) = workers.join_next() => {
                let context = || "a worker of the import".to_owned();
                worker.map_err(|error| MigrateError::Decode { context: context(), reason: error.to_string() })??;
            }
            else => break,
        }
    }
    Ok(())
}

impl Work {
    async fn run(
        &self,
        session: &Session,
        done: &tokio::sync::mpsc::Sender<(Chunk, ChunkResult)>,
    ) -> Result<(), MigrateError> {
        while let Some(chunk) = self.next() {
            let copier = ChunkCopier {
                table: &self.plans[chunk.table].table,
                session,
                target: &*self.target,
                throttle: &self.throttle,
                reporter: &self.reporter,
            };
            let result = copier.copy(&chunk).await?;
            self.add(&chunk, result);
            // If nobody listens, the import has failed elsewhere and says why.
            if done.send((chunk, result)).await.is_err() {
                return Ok(());
            }
        }
        Ok(())
    }

    fn next(&self) -> Option<Chunk> {
        self.queue
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front()
    }

    fn add(&self, chunk: &Chunk, result: ChunkResult) {
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        let state = &mut states[chunk.table];
        state.result.rows += result.rows;
        state.result.written += result.written;
        state.result.deleted += result.deleted;
        state.chunks_left -= 1;
        let finished = state.chunks_left == 0;
        drop(states);
        if finished {
            self.reporter.finish(&self.plans[chunk.table].table.name);
        }
    }

    fn report(&self) -> Vec<TableImport> {
        let states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        let tables = self
            .plans
            .iter()
            .zip(states.iter())
            .map(|(plan, state)| TableImport {
                table: plan.table.name.clone(),
                rows: state.result.rows,
                written: state.result.written,
                deleted: state.result.deleted,
                pieces: plan.split_keys.len() + 1,
            });
        tables.collect()
    }
}
