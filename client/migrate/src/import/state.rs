//! What the keyspace `_migrate` records of a job, as JSON for people and for the next run's first line.
//!
//! ```text
//! (job)                  {"run", "state": "running" | "done", "source", "snapshot", "tables", "rows"}
//! (job, table, chunk)    {"run", "rows", "written", "deleted"}
//! ```
//!
//! The job's name is made of the source's system identifier, its database, and a hash of the table names.

use bytes::Bytes;
use foundationdb_tuple::pack;
use serde::{Deserialize, Serialize};

use crate::STATE_KEYSPACE;
use crate::error::MigrateError;
use crate::import::plan::TablePlan;
use crate::source::{Session, Table};
use crate::target::Target;

const PAGE_ROWS: usize = 1000;

/// What an earlier run of the same job got done before it ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PreviousRun {
    /// The number of the latest earlier run, from 1.
    pub run: u64,
    /// Whether it finished.
    pub finished: bool,
    /// Chunks it finished.
    pub chunks: u64,
    /// Rows in those chunks.
    pub rows: u64,
}

#[derive(Serialize, Deserialize)]
struct JobRecord {
    run: u64,
    state: String,
    source: String,
    snapshot: String,
    tables: u64,
    rows: u64,
}

#[derive(Serialize, Deserialize)]
struct ChunkRecord {
    run: u64,
    rows: u64,
    written: u64,
    deleted: u64,
}

/// A job and its present run.
pub(crate) struct Job<'a> {
    pub(crate) name: String,
    pub(crate) run: u64,
    target: &'a dyn Target,
    source: String,
    snapshot: String,
}

/// The name of the job that copies these tables of this database.
pub(crate) async fn job_name(session: &Session, tables: &[Table]) -> Result<String, MigrateError> {
    let context = "asking for the system identifier";
    // The function may be revoked from ordinary users; the database's oid then has to do.
    let sql = "SELECT CASE WHEN has_function_privilege('pg_control_system()', 'execute')
                           THEN (SELECT system_identifier::text FROM pg_control_system())
                           ELSE 'oid-' || (SELECT oid::text FROM pg_database WHERE datname = current_database()) END,
                      current_database()::text";
    let rows = session.query(context, sql, &[]).await?;
    let Some(row) = rows.first() else {
        return Err(MigrateError::Decode {
            context: context.to_owned(),
            reason: "no row".to_owned(),
        });
    };
    let system: String = session.column(context, row, 0)?;
    let database: String = session.column(context, row, 1)?;
    let hash = hash(tables.iter().map(|table| table.name.as_str()));
    Ok(format!("{system}/{database}/{hash:016x}"))
}

/// FNV-1a over the names, each ended by a byte that no name contains.
fn hash<'a>(names: impl Iterator<Item = &'a str>) -> u64 {
    names
        .flat_map(|name| name.bytes().chain([0]))
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        })
}

impl<'a> Job<'a> {
    /// Records that a new run begins.
    pub(crate) async fn begin(
        target: &'a dyn Target,
        name: String,
        source: &str,
        snapshot: &str,
        plans: &[TablePlan],
    ) -> Result<(Job<'a>, Option<PreviousRun>), MigrateError> {
        target
            .ensure_keyspace(STATE_KEYSPACE, Vec::new())
            .await
            .map_err(MigrateError::target(STATE_KEYSPACE))?;
        let previous = previous(target, &name).await?;
        let run = previous.as_ref().map_or(1, |previous| previous.run + 1);
        let job = Job {
            name,
            run,
            target,
            source: source.to_owned(),
            snapshot: snapshot.to_owned(),
        };
        job.record("running", plans).await?;
        Ok((job, previous))
    }

    /// Records that a chunk equals the snapshot.
    pub(crate) async fn chunk_done(
        &self,
        table: &str,
        chunk: usize,
        rows: u64,
        written: u64,
        deleted: u64,
    ) -> Result<(), MigrateError> {
        let record = ChunkRecord {
            run: self.run,
            rows,
            written,
            deleted,
        };
        self.put(pack(&(&self.name, table, chunk as u64)), &record).await
    }

    /// Records that the run is done.
    pub(crate) async fn finish(&self, plans: &[TablePlan]) -> Result<(), MigrateError> {
        self.record("done", plans).await
    }

    async fn record(&self, state: &str, plans: &[TablePlan]) -> Result<(), MigrateError> {
        let record = JobRecord {
            run: self.run,
            state: state.to_owned(),
            source: self.source.clone(),
            snapshot: self.snapshot.clone(),
            tables: plans.len() as u64,
            rows: plans.iter().map(|plan| plan.rows).sum(),
        };
        self.put(pack(&(&self.name,)), &record).await
    }

    async fn put(&self, key: Vec<u8>, record: &impl Serialize) -> Result<(), MigrateError> {
        let value = serde_json::to_vec(record).map_err(|error| unreadable(&error))?;
        let rows = vec![(Bytes::from(key), Bytes::from(value))];
        self.target
            .put_many(STATE_KEYSPACE, rows)
            .await
            .map_err(MigrateError::target(STATE_KEYSPACE))
    }
}

fn unreadable(error: &serde_json::Error) -> MigrateError {
    MigrateError::Decode {
        context: format!("a record in {STATE_KEYSPACE}"),
        reason: error.to_string(),
    }
}

async fn previous(target: &dyn Target, job: &str) -> Result<Option<PreviousRun>, MigrateError> {
    let key = Bytes::from(pack(&(job,)));
    let record = target
        .get(STATE_KEYSPACE, key.clone())
        .await
        .map_err(MigrateError::target(STATE_KEYSPACE))?;
    let Some(record) = record else { return Ok(None) };
    let record: JobRecord = serde_json::from_slice(&record).map_err(|error| unreadable(&error))?;
    let mut previous = PreviousRun {
        run: record.run,
        finished: record.state == "done",
        chunks: 0,
        rows: 0,
    };
    let end = Bytes::from([&key[..], &[0xff]].concat());
    let mut next = Some(Bytes::from([&key[..], &[0x00]].concat()));
    while let Some(from) = next {
        let page = target
            .scan(STATE_KEYSPACE, from, Some(end.clone()), PAGE_ROWS)
            .await;
        let page = page.map_err(MigrateError::target(STATE_KEYSPACE))?;
        for (_, value) in &page.rows {
            let chunk: ChunkRecord = serde_json::from_slice(value).map_err(|error| unreadable(&error))?;
            if chunk.run == record.run {
                previous.chunks += 1;
                previous.rows += chunk.rows;
            }
        }
        next = page.next;
    }
    Ok(Some(previous))
}
