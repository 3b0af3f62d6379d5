//! Workers that take chunks from one queue, and what they have done.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::JoinSet;

use crate::error::MigrateError;
use crate::import::TableImport;
use crate::import::chunk::{ChunkCopier, ChunkResult};
use crate::import::plan::{Chunk, TablePlan};
use crate::import::state::Job;
use crate::import::throttle::Throttle;
use crate::progress::Reporter;
use crate::source::{Session, Snapshot};
use crate::target::Target;

struct TableState {
    result: ChunkResult,
    chunks_left: usize,
}

/// What the workers share.
pub(crate) struct Work {
    pub(crate) plans: Vec<TablePlan>,
    queue: Mutex<VecDeque<Chunk>>,
    states: Mutex<Vec<TableState>>,
    throttle: Throttle,
    reporter: Reporter,
    target: Arc<dyn Target>,
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

/// Copies every chunk with so many connections; the first error stops them all.
pub(crate) async fn run(
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
    pub(crate) fn new(
        plans: Vec<TablePlan>,
        throttle: Throttle,
        reporter: Reporter,
        target: Arc<dyn Target>,
    ) -> Work {
        let state = |plan: &TablePlan| TableState {
            result: ChunkResult::default(),
            chunks_left: plan.chunks.len(),
        };
        let states = Mutex::new(plans.iter().map(state).collect());
        Work {
            states,
            queue: Mutex::new(spread(&plans)),
            plans,
            throttle,
            reporter,
            target,
        }
    }

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

    /// What was done to every table.
    pub(crate) fn report(&self) -> Vec<TableImport> {
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
