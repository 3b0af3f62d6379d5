//! The business on the cluster: each request, entered in the ledger before it is sent and after it is answered.

use anyhow::Context;
use futures::StreamExt;
use parking_lot::Mutex;
use reelkv_client::{Client, Condition, CreateKeyspace, ErrorKind, Keyspace, Record};
use reelkv_proto::types::stored_key;

use super::counter::Counter;
use super::data::{COUNTERS, COUNTERS_LEN, DataSet, RowIndex, Table};
use super::ledger::{Found, Ledger};
use super::stall::StallMeter;
use crate::clock::{Instant, now};

/// Rows being loaded at a time.
const LOADING_MAX: usize = 256;
/// So many failures while loading mean that the cluster does not work.
const LOAD_FAILURES_MAX: u64 = 100;

/// What all workers share.
#[derive(Debug)]
pub(super) struct Books {
    pub ledger: Ledger,
    pub counters: Vec<Counter>,
    pub stall: StallMeter,
    /// Requests answered so far.
    pub answered: u64,
}

/// The tables of the demo on a cluster, and the books kept about them.
pub(super) struct Business {
    pub data: DataSet,
    pub books: Mutex<Books>,
    keyspaces: Vec<Keyspace>,
    counters: Keyspace,
    started: Instant,
}

impl Business {
    /// Makes the keyspaces, cut at even parts of the rows, and opens them.
    pub async fn found(client: &Client, data: DataSet, started: Instant) -> anyhow::Result<Self> {
        for table in Table::ALL {
            let split_keys = data.split_keys(table);
            let shards = split_keys.is_empty().then_some(1);
            let made = client
                .create_keyspace(table.name(), CreateKeyspace { shards, split_keys })
                .await;
            made.with_context(|| format!("making keyspace {}", table.name()))?;
        }
        let whole = CreateKeyspace {
            shards: Some(1),
            ..CreateKeyspace::default()
        };
        let made = client.create_keyspace(COUNTERS, whole).await;
        made.with_context(|| format!("making keyspace {COUNTERS}"))?;
        Ok(Self::open(client, data, started).await?)
    }

    /// Opens the keyspaces, which exist and are empty.
    pub async fn open(client: &Client, data: DataSet, started: Instant) -> reelkv_client::Result<Self> {
        let mut keyspaces = Vec::new();
        for table in Table::ALL {
            keyspaces.push(client.keyspace(table.name()).await?);
        }
        let books = Books {
            ledger: Ledger::new(data.len()),
            counters: vec![Counter::default(); COUNTERS_LEN],
            stall: StallMeter::new(0, 0),
            answered: 0,
        };
        let counters = client.keyspace(COUNTERS).await?;
        Ok(Self {
            books: Mutex::new(books),
            keyspaces,
            counters,
            data,
            started,
        })
    }

    /// Milliseconds since the demo began.
    pub fn elapsed_ms(&self) -> u64 {
        now().duration_since(self.started).as_millis() as u64
    }

    /// A row's key as replicas store it.
    pub fn stored_key(&self, row: RowIndex) -> bytes::Bytes {
        stored_key(self.keyspace(row).id(), &self.data.key(row))
    }

    /// A counter's key as replicas store it.
    pub fn stored_counter_key(&self, counter: usize) -> bytes::Bytes {
        stored_key(self.counters.id(), &counter_key(counter))
    }

    /// Writes the first revision of every row.
    pub async fn load(&self) -> anyhow::Result<()> {
        let mut writes = futures::stream::iter(0..self.data.len())
            .map(|row| self.write(row, false))
            .buffer_unordered(LOADING_MAX);
        while writes.next().await.is_some() {
            let books = self.books.lock();
            if books.ledger.failed_requests() > LOAD_FAILURES_MAX {
                anyhow::bail!(
                    "loading the data set failed: {}",
                    books.ledger.remarks().join("; ")
                );
            }
        }
        Ok(())
    }

    /// Reads a row and judges what comes. Returns whether an answer came.
    pub async fn read(&self, row: RowIndex) -> bool {
        let floor = self.books.lock().ledger.floor(row);
        let answer = self.keyspace(row).get(self.data.key(row)).await;
        let found = answer.map(|record| self.found_record(row, record.as_ref()));
        let mut books = self.books.lock();
        books.answered += 1;
        match found {
            Ok(found) => {
                books
                    .ledger
                    .count_read(row, floor, found, |revision| self.deletes(row, revision));
                return true;
            }
            Err(error) => books.ledger.fail(self.remark("get", row, &error)),
        }
        false
    }

    /// Makes a row's next revision; if `conditional`, only upon the one acknowledged last. Only
    /// the row's one writer may call this. Returns whether it was acknowledged.
    pub async fn write(&self, row: RowIndex, conditional: bool) -> bool {
        let (revision, last) = {
            let mut books = self.books.lock();
            let last = books.ledger.settled(row);
            (books.ledger.begin_write(row), last)
        };
        let condition = last
            .filter(|_| conditional)
            .map(|last| match self.deletes(row, last.revision) {
                true => Condition::Absent,
                false => Condition::Version(last.version),
            });
        let (keyspace, key) = (self.keyspace(row), self.data.key(row));
        let answer = match (self.data.value(row, revision), condition) {
            (Some(value), None) => keyspace.put(key, value).await,
            (Some(value), Some(condition)) => keyspace.put_if(key, value, condition).await,
            (None, Some(condition @ Condition::Version(_))) => keyspace.delete_if(key, condition).await,
            (None, _) => keyspace.delete(key).await,
        };
        let mut books = self.books.lock();
        books.answered += 1;
        match answer {
            Ok(version) => {
                books.ledger.acknowledge(row, revision, version);
                return true;
            }
            // Nobody else writes this row: its version can only be the acknowledged one.
            Err(error) if matches!(error.kind(), ErrorKind::ConditionFailed { .. }) => {
                books.ledger.wrong(self.remark("put_if", row, &error));
            }
            Err(error) => books.ledger.fail(self.remark("write", row, &error)),
        }
        false
    }

    /// Adds one to a counter and judges the sum.
    pub async fn count(&self, counter: usize) {
        let floor = self.books.lock().counters[counter].begin();
        let answer = self.counters.add(counter_key(counter), 1).await;
        let mut books = self.books.lock();
        books.answered += 1;
        match answer {
            Ok(sum) => {
                books.ledger.acknowledge_other();
                if !books.counters[counter].acknowledge(floor, sum) {
                    books.ledger.wrong(format!(
                        "counter {counter}: sum {sum} where {floor} had been acknowledged"
                    ));
                }
            }
            Err(error) => {
                let at_ms = self.elapsed_ms();
                books
                    .ledger
                    .fail(format!("add to counter {counter} at {at_ms} ms: {error}"));
            }
        }
    }

    /// What a record read of a row is.
    fn found_record(&self, row: RowIndex, record: Option<&Record>) -> Found {
        match record {
            None => Found::Absent,
            Some(record) => self.found_value(row, &record.value, record.version),
        }
    }

    /// What a value read of a row is.
    pub fn found_value(&self, row: RowIndex, value: &[u8], version: u64) -> Found {
        match self.data.revision_of(row, value) {
            Some(revision) => Found::Revision { revision, version },
            None => Found::Foreign,
        }
    }

    /// Whether a revision of a row deletes it.
    pub fn deletes(&self, row: RowIndex, revision: u32) -> bool {
        self.data.deletes(row, revision)
    }

    fn keyspace(&self, row: RowIndex) -> &Keyspace {
        &self.keyspaces[self.data.table(row) as usize]
    }

    fn remark(&self, what: &str, row: RowIndex, error: &reelkv_client::Error) -> String {
        let table = self.data.table(row).name();
        format!(
            "{what} of row {row} ({table}) ended at {} ms: {error} ({:?})",
            self.elapsed_ms(),
            error.kind()
        )
    }
}

fn counter_key(counter: usize) -> bytes::Bytes {
    reelkv_client::key::pack(&(counter as u64,))
}
