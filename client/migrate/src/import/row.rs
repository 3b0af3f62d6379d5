//! A raw row → the key and value that are stored.

use bytes::Bytes;

use crate::error::MigrateError;
use crate::import::binary::RawRow;
use crate::import::{cbor, key, value};
use crate::source::Table;
use crate::target::Row;
use crate::{FORMAT_CBOR, MAX_KEY_BYTES, MAX_VALUE_BYTES, decode_key};

/// Encodes the rows of one table.
pub(crate) struct RowEncoder<'a> {
    table: &'a Table,
    /// Column indexes in the order of the map, each with its name in CBOR.
    order: Vec<(usize, Vec<u8>)>,
}

impl<'a> RowEncoder<'a> {
    pub(crate) fn new(table: &'a Table) -> RowEncoder<'a> {
        let encoded = |name: &str| {
            let mut out = Vec::new();
            cbor::text(&mut out, name);
            out
        };
        let mut order: Vec<(usize, Vec<u8>)> = table
            .columns
            .iter()
            .enumerate()
            .map(|(index, column)| (index, encoded(&column.name)))
            .collect();
        // Bytewise order of the encoded keys: the deterministic encoding's rule.
        order.sort_by(|a, b| a.1.cmp(&b.1));
        RowEncoder { table, order }
    }

    /// The key and value of a row.
    pub(crate) fn encode(&self, row: &RawRow) -> Result<Row, MigrateError> {
        let mut key = Vec::new();
        for &index in &self.table.key {
            let column = &self.table.columns[index];
            let bytes = row
                .field(index)
                .ok_or_else(|| self.error(index, "NULL in a primary key".to_owned()))?;
            key::encode_element(&column.kind, bytes, &mut key).map_err(|reason| self.error(index, reason))?;
        }
        let mut value = vec![FORMAT_CBOR];
        cbor::map(&mut value, self.order.len());
        for (index, name) in &self.order {
            value.extend_from_slice(name);
            let kind = &self.table.columns[*index].kind;
            value::encode(kind, row.field(*index), &mut value)
                .map_err(|reason| self.error(*index, reason))?;
        }
        self.check_size(&key, "key", key.len(), MAX_KEY_BYTES)?;
        self.check_size(&key, "value", value.len(), MAX_VALUE_BYTES)?;
        Ok((Bytes::from(key), Bytes::from(value)))
    }

    fn check_size(
        &self,
        key: &[u8],
        what: &'static str,
        bytes: usize,
        limit: usize,
    ) -> Result<(), MigrateError> {
        if bytes <= limit {
            return Ok(());
        }
        let key: String = decode_key(key).to_string().chars().take(200).collect();
        Err(MigrateError::RowTooLarge {
            table: self.table.name.clone(),
            key,
            what,
            bytes,
            limit,
        })
    }

    fn error(&self, index: usize, reason: String) -> MigrateError {
        let context = format!(
            "table {}, column {}",
            self.table.name, self.table.columns[index].name
        );
        MigrateError::Decode { context, reason }
    }
}
