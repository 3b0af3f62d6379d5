//! Makes one chunk of a keyspace equal to the same chunk of its table: a merge of two streams in key order.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::pin::pin;

use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};

use crate::error::MigrateError;
use crate::import::binary::BinaryCopy;
use crate::import::plan::Chunk;
use crate::import::row::RowEncoder;
use crate::import::throttle::Throttle;
use crate::progress::Reporter;
use crate::source::{Session, Table};
use crate::target::{Row, Target};

const PAGE_ROWS: usize = 1000;
const BATCH_BYTES: usize = 1 << 20;
const DELETES_IN_FLIGHT: usize = 64;

/// What was done to a chunk.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ChunkResult {
    /// Rows of the table.
    pub(crate) rows: u64,
    /// Of these, rows that the keyspace lacked or held differently.
    pub(crate) written: u64,
    /// Rows that the table does not have.
    pub(crate) deleted: u64,
}

/// The rows of a keyspace's range, a page at a time.
struct TargetRows<'a> {
    target: &'a dyn Target,
    keyspace: &'a str,
    page: VecDeque<Row>,
    next: Option<Bytes>,
    until: Option<Bytes>,
}

impl TargetRows<'_> {
    /// The row at the front, if the range has one more.
    async fn peek(&mut self) -> Result<Option<&Row>, MigrateError> {
        while self.page.is_empty() {
            let Some(from) = self.next.take() else {
                return Ok(None);
            };
            let page = self
                .target
                .scan(self.keyspace, from, self.until.clone(), PAGE_ROWS)
                .await;
            let page = page.map_err(MigrateError::target(self.keyspace))?;
            self.page = page.rows.into();
            self.next = page.next;
        }
        Ok(self.page.front())
    }
}

/// Changes that wait to be written together.
#[derive(Default)]
struct Batch {
    /// Rows read from the table since the last flush.
    read: usize,
    bytes: usize,
    puts: Vec<Row>,
    deletes: Vec<Bytes>,
}

/// Copies chunks of one table.
pub(crate) struct ChunkCopier<'a> {
    pub(crate) table: &'a Table,
    pub(crate) session: &'a Session,
    pub(crate) target: &'a dyn Target,
    pub(crate) throttle: &'a Throttle,
    pub(crate) reporter: &'a Reporter,
}

impl ChunkCopier<'_> {
    /// Copies the chunk. When it returns, the keyspace's range equals the snapshot's.
    pub(crate) async fn copy(&self, chunk: &Chunk) -> Result<ChunkResult, MigrateError> {
        self.session.hold(self.table).await?;
        let result = self.merge(chunk).await?;
        self.session.release(self.table).await?;
        Ok(result)
    }

    async fn merge(&self, chunk: &Chunk) -> Result<ChunkResult, MigrateError> {
        let name = self.table.name.as_str();
        let query = format!(
            "COPY (SELECT {} FROM {} WHERE {} ORDER BY {}) TO STDOUT (FORMAT binary)",
            self.table.select_list(),
            self.table.from,
            chunk.condition(self.table),
            self.table.order_list()
        );
        let stream = self.session.client.copy_out(&query).await;
        let mut stream = pin!(stream.map_err(|error| self.session.error(name, &error))?);
        let decode_error = |reason| MigrateError::Decode {
            context: format!("table {name}"),
            reason,
        };
        let encoder = RowEncoder::new(self.table);
        let mut copy = BinaryCopy::new(self.table.columns.len());
        let mut stored = TargetRows {
            target: self.target,
            keyspace: name,
            page: VecDeque::new(),
            next: Some(
                chunk
                    .from
                    .as_ref()
                    .map_or_else(Bytes::new, |bound| bound.key.clone()),
            ),
            until: chunk.until.as_ref().map(|bound| bound.key.clone()),
        };
        let (mut result, mut batch, mut last_key) = (ChunkResult::default(), Batch::default(), Bytes::new());
        while let Some(message) = stream.next().await {
            copy.feed(&message.map_err(|error| self.session.error(name, &error))?);
            while let Some(raw) = copy.next_row().map_err(decode_error)? {
                let row = encoder.encode(&raw)?;
                if result.rows > 0 && row.0 <= last_key {
                    return Err(decode_error(format!(
                        "keys do not ascend: {last_key:?}, then {:?}",
                        row.0
                    )));
                }
                last_key = row.0.clone();
                result.rows += 1;
                self.merge_row(row, &mut stored, &mut batch).await?;
                self.flush_if_full(&mut batch, &mut result).await?;
            }
        }
        copy.finish().map_err(decode_error)?;
        while let Some((key, _)) = stored.peek().await? {
            batch.deletes.push(key.clone());
            stored.page.pop_front();
            self.flush_if_full(&mut batch, &mut result).await?;
        }
        self.flush(&mut batch, &mut result).await?;
        Ok(result)
    }

    /// Adds to the batch what makes the keyspace equal up to and including this row.
    async fn merge_row(
        &self,
        row: Row,
        stored: &mut TargetRows<'_>,
        batch: &mut Batch,
    ) -> Result<(), MigrateError> {
        batch.read += 1;
        while let Some((key, value)) = stored.peek().await? {
            let order = key.cmp(&row.0);
            if order == Ordering::Greater {
                break;
            }
            let same = order == Ordering::Equal && *value == row.1;
            if order == Ordering::Less {
                batch.deletes.push(key.clone());
            }
            stored.page.pop_front();
            if same {
                return Ok(());
            }
        }
        batch.bytes += row.0.len() + row.1.len();
        batch.puts.push(row);
        Ok(())
    }

    async fn flush_if_full(&self, batch: &mut Batch, result: &mut ChunkResult) -> Result<(), MigrateError> {
        let most = self.throttle.batch_rows();
        if batch.read >= most || batch.deletes.len() >= most || batch.bytes >= BATCH_BYTES {
            self.flush(batch, result).await?;
        }
        Ok(())
    }

    async fn flush(&self, batch: &mut Batch, result: &mut ChunkResult) -> Result<(), MigrateError> {
        let Batch {
            read, puts, deletes, ..
        } = std::mem::take(batch);
        let keyspace = self.table.name.as_str();
        self.throttle.take(read).await;
        result.written += puts.len() as u64;
        result.deleted += deletes.len() as u64;
        if !puts.is_empty() {
            self.target
                .put_many(keyspace, puts)
                .await
                .map_err(MigrateError::target(keyspace))?;
        }
        stream::iter(deletes.into_iter().map(|key| self.target.delete(keyspace, key)))
            .buffer_unordered(DELETES_IN_FLIGHT)
            .try_collect::<Vec<()>>()
            .await
            .map_err(MigrateError::target(keyspace))?;
        self.reporter.advance(keyspace, read as u64);
        Ok(())
    }
}
