//! What will be copied: tables, their counts, where keyspaces split and where chunks begin.

use bytes::Bytes;
use tokio_postgres::types::{FromSql, Type};

use crate::error::MigrateError;
use crate::import::key;
use crate::source::{Session, Table, quote_identifier, quote_literal};

/// A chunk is about this many rows: large enough to stream, small enough to spread over workers.
const CHUNK_ROWS: u64 = 20_000;

/// A place between two rows, where the first column of the key changes.
#[derive(Clone, Debug)]
pub(crate) struct Boundary {
    /// The first key of what follows, cut after its first element.
    pub(crate) key: Bytes,
    /// The same value as SQL.
    pub(crate) literal: String,
}

/// A range of a table's keys. A missing bound is the end of all keys.
#[derive(Clone, Debug)]
pub(crate) struct Chunk {
    /// Index of its table in the plan.
    pub(crate) table: usize,
    /// Its place among the table's chunks.
    pub(crate) number: usize,
    pub(crate) from: Option<Boundary>,
    pub(crate) until: Option<Boundary>,
}

impl Chunk {
    /// The SQL condition of the range.
    pub(crate) fn condition(&self, table: &Table) -> String {
        let Some((expression, _)) = first_key_expression(table) else {
            return "true".to_owned();
        };
        let from = self
            .from
            .iter()
            .map(|bound| format!("{expression} >= {}", bound.literal));
        let until = self
            .until
            .iter()
            .map(|bound| format!("{expression} < {}", bound.literal));
        let conditions: Vec<String> = from.chain(until).collect();
        if conditions.is_empty() {
            "true".to_owned()
        } else {
            conditions.join(" AND ")
        }
    }
}

/// A table and how it is copied.
#[derive(Clone, Debug)]
pub(crate) struct TablePlan {
    pub(crate) table: Table,
    pub(crate) rows: u64,
    pub(crate) split_keys: Vec<Bytes>,
    pub(crate) chunks: Vec<Chunk>,
}

/// Counts every table, then cuts the large ones. Reads each table once, large ones three times.
///
/// Keyspaces are cut into pieces of about four fifths of `total rows / shards`, so that no piece is over
/// `total rows / shards`: boundaries can only be where the first column of the key changes, because a shard never
/// begins inside one first tuple element.
pub(crate) async fn plan(
    session: &Session,
    tables: Vec<Table>,
    shards: u32,
) -> Result<Vec<TablePlan>, MigrateError> {
    let mut counts = Vec::with_capacity(tables.len());
    for table in &tables {
        session.hold(table).await?;
        counts.push(count(session, table).await?);
        session.release(table).await?;
    }
    let total: u64 = counts.iter().sum();
    let piece_rows = (total * 4 / (u64::from(shards) * 5)).max(1);
    let mut plans = Vec::with_capacity(tables.len());
    for (index, (table, rows)) in tables.into_iter().zip(counts).enumerate() {
        let splits = if rows > piece_rows {
            boundaries(session, &table, piece_rows).await?
        } else {
            Vec::new()
        };
        // Where a range of keys is no range of an index, every chunk would read the whole table.
        let cut = rows > CHUNK_ROWS && table.first_key_column().kind.order_is_native();
        let cuts = if cut {
            boundaries(session, &table, CHUNK_ROWS).await?
        } else {
            Vec::new()
        };
        let split_keys = splits.into_iter().map(|boundary| boundary.key).collect();
        plans.push(TablePlan {
            table,
            rows,
            split_keys,
            chunks: chunks(index, &cuts),
        });
    }
    Ok(plans)
}

/// The ranges between the cuts; together they cover every key.
fn chunks(table: usize, cuts: &[Boundary]) -> Vec<Chunk> {
    let starts = std::iter::once(None).chain(cuts.iter().cloned().map(Some));
    let ends = cuts.iter().cloned().map(Some).chain(std::iter::once(None));
    starts
        .zip(ends)
        .enumerate()
        .map(|(number, (from, until))| Chunk {
            table,
            number,
            from,
            until,
        })
        .collect()
}

fn first_key_expression(table: &Table) -> Option<(String, &'static str)> {
    let column = table.first_key_column();
    column.kind.order_expression(&quote_identifier(&column.name))
}

async fn count(session: &Session, table: &Table) -> Result<u64, MigrateError> {
    let rows = session
        .query(&table.name, &format!("SELECT count(*) FROM {}", table.from), &[])
        .await?;
    let count: i64 = match rows.first() {
        Some(row) => session.column(&table.name, row, 0)?,
        None => 0,
    };
    Ok(count.unsigned_abs())
}

/// The places that cut a table into pieces of `piece_rows` rows, each where the first key column changes: a value
/// belongs to the piece its first row falls into.
async fn boundaries(
    session: &Session,
    table: &Table,
    piece_rows: u64,
) -> Result<Vec<Boundary>, MigrateError> {
    let Some((expression, type_name)) = first_key_expression(table) else {
        return Ok(Vec::new());
    };
    let column = table.first_key_column();
    let sql = format!(
        "SELECT value, value::text AS printed FROM (
           SELECT value, first / {piece_rows} AS piece, lag(first / {piece_rows}) OVER (ORDER BY value) AS previous
           FROM (SELECT value, (sum(n) OVER (ORDER BY value) - n)::bigint AS first
                 FROM (SELECT {expression} AS value, count(*) AS n FROM {} GROUP BY 1) AS counted) AS summed
         ) AS cut WHERE piece > previous ORDER BY value",
        table.from
    );
    session.hold(table).await?;
    let mut boundaries = Vec::new();
    for row in session.query(&table.name, &sql, &[]).await? {
        let Raw(bytes) = session.column(&table.name, &row, 0)?;
        let text: String = session.column(&table.name, &row, 1)?;
        let mut key = Vec::new();
        key::encode_element(&column.kind, &bytes, &mut key).map_err(|reason| MigrateError::Decode {
            context: format!("table {}, column {}", table.name, column.name),
            reason,
        })?;
        let literal = format!("{}::{type_name}", quote_literal(&text));
        boundaries.push(Boundary {
            key: Bytes::from(key),
            literal,
        });
    }
    session.release(table).await?;
    Ok(boundaries)
}

/// A value's bytes as the server sent them.
struct Raw(Vec<u8>);

impl<'a> FromSql<'a> for Raw {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Raw(raw.to_vec()))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}
