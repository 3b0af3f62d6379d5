//! One table against its keyspace.

use std::cmp::Ordering;
use std::collections::{BTreeMap, VecDeque};
use std::pin::pin;

use bytes::Bytes;
use ciborium::Value;
use futures::StreamExt;

use crate::error::MigrateError;
use crate::progress::Reporter;
use crate::source::{Session, Table};
use crate::target::{Row, Target};
use crate::verify::canon::Canon;
use crate::verify::copy_text::{Field, TextCopy};
use crate::verify::{ColumnDifference, Mismatch, MismatchKind, TableVerify, text, tuple};
use crate::{FORMAT_CBOR, decode_key};

const PAGE_ROWS: usize = 1000;
const MISMATCHES_SHOWN: usize = 20;
const VALUE_CHARS_SHOWN: usize = 200;
const PROGRESS_ROWS: u64 = 1000;

/// The keyspace's rows in order.
struct Stored<'a> {
    target: &'a dyn Target,
    keyspace: &'a str,
    page: VecDeque<Row>,
    next: Option<Bytes>,
}

impl Stored<'_> {
    async fn next(&mut self) -> Result<Option<Row>, MigrateError> {
        while self.page.is_empty() {
            let Some(from) = self.next.take() else {
                return Ok(None);
            };
            let page = self.target.scan(self.keyspace, from, None, PAGE_ROWS).await;
            let page = page.map_err(MigrateError::target(self.keyspace))?;
            self.page = page.rows.into();
            self.next = page.next;
        }
        Ok(self.page.pop_front())
    }
}

/// Compares all rows. The session holds the table.
pub(super) async fn table(
    session: &Session,
    table: &Table,
    target: &dyn Target,
    reporter: &Reporter,
) -> Result<TableVerify, MigrateError> {
    let exists = target
        .keyspace_exists(&table.name)
        .await
        .map_err(MigrateError::target(&table.name))?;
    let rows = session
        .query(&table.name, &format!("SELECT count(*) FROM {}", table.from), &[])
        .await?;
    let count: i64 = rows
        .first()
        .map_or(Ok(0), |row| session.column(&table.name, row, 0))?;
    reporter.begin(&table.name, count.unsigned_abs());
    let keyspace_missing = !exists;
    let mut comparison = Comparison {
        table,
        result: TableVerify {
            table: table.name.clone(),
            keyspace_missing,
            ..TableVerify::default()
        },
    };
    let mut stored = Stored {
        target,
        keyspace: &table.name,
        page: VecDeque::new(),
        next: exists.then(Bytes::new),
    };
    let mut front = stored.next().await?;
    let query = format!(
        "COPY (SELECT {} FROM {} ORDER BY {}) TO STDOUT (FORMAT text)",
        table.select_list(),
        table.from,
        table.order_list()
    );
    let stream = session
        .client
        .copy_out(&query)
        .await
        .map_err(|error| session.error(&table.name, &error))?;
    let mut stream = pin!(stream);
    let (mut copy, mut last_key) = (TextCopy::default(), Vec::new());
    while let Some(message) = stream.next().await {
        copy.feed(&message.map_err(|error| session.error(&table.name, &error))?);
        while let Some(row) = copy.next_row().map_err(|reason| comparison.error(reason))? {
            let key = comparison.key(&row)?;
            if comparison.result.rows > 0 && key <= last_key {
                return Err(comparison.error("the keys of the table do not ascend".to_owned()));
            }
            comparison.result.rows += 1;
            if comparison.result.rows.is_multiple_of(PROGRESS_ROWS) {
                reporter.advance(&table.name, PROGRESS_ROWS);
            }
            while let Some((extra, _)) = front.take_if(|(stored, _)| stored.as_ref() < key.as_slice()) {
                comparison.extra(&extra);
                front = stored.next().await?;
            }
            match front.take_if(|(stored, _)| stored.as_ref() == key.as_slice()) {
                None => comparison.missing(&key),
                Some((_, value)) => {
                    comparison.same_key(&key, &row, &value)?;
                    front = stored.next().await?;
                }
            }
            last_key = key;
        }
    }
    copy.finish().map_err(|reason| comparison.error(reason))?;
    while let Some((extra, _)) = front {
        comparison.extra(&extra);
        front = stored.next().await?;
    }
    reporter.advance(&table.name, comparison.result.rows % PROGRESS_ROWS);
    Ok(comparison.result)
}

struct Comparison<'a> {
    table: &'a Table,
    result: TableVerify,
}

impl Comparison<'_> {
    fn error(&self, reason: String) -> MigrateError {
        MigrateError::Decode {
            context: format!("table {}", self.table.name),
            reason,
        }
    }

    /// The key that the row must have.
    fn key(&self, row: &[Field]) -> Result<Vec<u8>, MigrateError> {
        if row.len() != self.table.columns.len() {
            let reason = format!(
                "a row of {} fields where {} belong",
                row.len(),
                self.table.columns.len()
            );
            return Err(self.error(reason));
        }
        let mut key = Vec::new();
        for &index in &self.table.key {
            let column = &self.table.columns[index];
            let field = row[index]
                .as_deref()
                .ok_or_else(|| self.error("NULL in a primary key".to_owned()))?;
            tuple::append(&column.kind, field, &mut key).map_err(|reason| self.error(reason))?;
        }
        Ok(key)
    }

    fn mismatch(&mut self, kind: MismatchKind, key: &[u8], columns: Vec<ColumnDifference>) {
        if self.result.mismatches.len() < MISMATCHES_SHOWN {
            self.result.mismatches.push(Mismatch {
                kind,
                key: decode_key(key),
                columns,
            });
        }
    }

    fn missing(&mut self, key: &[u8]) {
        self.result.missing += 1;
        self.mismatch(MismatchKind::Missing, key, Vec::new());
    }

    fn extra(&mut self, key: &[u8]) {
        self.result.extra += 1;
        self.result.stored_rows += 1;
        self.mismatch(MismatchKind::Extra, key, Vec::new());
    }

    fn same_key(&mut self, key: &[u8], row: &[Field], value: &[u8]) -> Result<(), MigrateError> {
        self.result.stored_rows += 1;
        let mut expected = BTreeMap::new();
        for (column, field) in self.table.columns.iter().zip(row) {
            let value = text::parse(&column.kind, field.as_deref()).map_err(|reason| {
                let context = format!("table {}, column {}", self.table.name, column.name);
                MigrateError::Decode { context, reason }
            })?;
            expected.insert(column.name.clone(), value);
        }
        let columns = match read_stored(value) {
            Ok(stored) => differences(&expected, &stored),
            Err(reason) => {
                vec![ColumnDifference {
                    column: "<value>".to_owned(),
                    source: None,
                    stored: Some(reason),
                }]
            }
        };
        if !columns.is_empty() {
            self.result.different += 1;
            self.mismatch(MismatchKind::Different, key, columns);
        }
        Ok(())
    }
}

/// Columns that are not equal or only on one side; both maps ascend.
fn differences(source: &BTreeMap<String, Canon>, stored: &BTreeMap<String, Canon>) -> Vec<ColumnDifference> {
    let mut names: Vec<&String> = source.keys().chain(stored.keys()).collect();
    names.sort();
    names.dedup();
    let differing = names
        .into_iter()
        .filter(|name| source.get(*name) != stored.get(*name));
    let shown = |value: &Canon| value.to_string().chars().take(VALUE_CHARS_SHOWN).collect();
    differing
        .map(|name| ColumnDifference {
            column: name.clone(),
            source: source.get(name).map(shown),
            stored: stored.get(name).map(shown),
        })
        .collect()
}

/// A stored value's columns. The map must be written deterministically: written again by the library, which writes
/// shortest forms, it gives the same bytes; names ascend as their encodings do.
fn read_stored(value: &[u8]) -> Result<BTreeMap<String, Canon>, String> {
    let Some((&FORMAT_CBOR, map)) = value.split_first() else {
        return Err(format!("format {:?} is not {FORMAT_CBOR}", value.first()));
    };
    let decoded: Value = ciborium::from_reader(map).map_err(|error| error.to_string())?;
    let mut again = Vec::with_capacity(map.len());
    ciborium::into_writer(&decoded, &mut again).map_err(|error| error.to_string())?;
    if again != map {
        return Err("the value is not in the deterministic encoding".to_owned());
    }
    let Value::Map(pairs) = decoded else {
        return Err("the value is not a map".to_owned());
    };
    let mut columns = BTreeMap::new();
    let mut last: Option<String> = None;
    for (name, value) in pairs {
        let Value::Text(name) = name else {
            return Err(format!("the name {name:?} is not text"));
        };
        // Encoded text sorts by length, then by bytes.
        let order = |a: &str, b: &str| a.len().cmp(&b.len()).then_with(|| a.cmp(b));
        if last
            .as_ref()
            .is_some_and(|last| order(last, &name) != Ordering::Less)
        {
            return Err(format!("the name {name:?} is out of order"));
        }
        columns.insert(name.clone(), Canon::from_cbor(value)?);
        last = Some(name);
    }
    Ok(columns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_values_must_be_deterministic_maps() {
        assert_eq!(
            read_stored(b"\x01\xa1\x61a\x05").unwrap(),
            BTreeMap::from([("a".to_owned(), Canon::Int(5))])
        );
        for bad in [
            &b""[..],
            b"\x02\xa0",
            b"\x01",
            b"\x01\x05",
            b"\x01\xa0\x00",
            b"\x01\xa1\x01\x05",
            b"\x01\xa1\x61",
            b"\x01\xa2\x61b\x05\x61a\x05",
            b"\x01\xa2\x61a\x05\x61a\x05",
            b"\x01\xa1\x61a\x18\x05",
            b"\x01\xbf\x61a\x05\xff",
        ] {
            assert!(read_stored(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn differences_name_columns_of_either_side() {
        let map = |pairs: &[(&str, i128)]| {
            pairs
                .iter()
                .map(|(name, value)| ((*name).to_owned(), Canon::Int(*value)))
                .collect::<BTreeMap<_, _>>()
        };
        let found = differences(
            &map(&[("same", 1), ("changed", 2), ("gone", 3)]),
            &map(&[("same", 1), ("changed", 4), ("new", 5)]),
        );
        let names: Vec<_> = found
            .iter()
            .map(|d| (d.column.as_str(), d.source.as_deref(), d.stored.as_deref()))
            .collect();
        assert_eq!(
            names,
            [
                ("changed", Some("2"), Some("4")),
                ("gone", Some("3"), None),
                ("new", None, Some("5")),
            ]
        );
    }
}
