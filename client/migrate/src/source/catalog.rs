//! The tables of a database, and what keeps one from being imported.

use std::collections::HashMap;

use crate::error::{MigrateError, Unsupported};
use crate::kind::{Kind, PgType, Types, classify};
use crate::source::{Session, quote_identifier};

/// A column and how it is represented.
#[derive(Clone, Debug)]
pub(crate) struct Column {
    pub(crate) name: String,
    pub(crate) kind: Kind,
}

/// A table that can be imported: ordinary, or the root of a partitioned one.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    pub(crate) oid: u32,
    /// `schema.table`: the keyspace, and the name in every message.
    pub(crate) name: String,
    /// As SQL wants it in FROM. An ordinary table excludes those that inherit from it: they are tables of their own.
    pub(crate) from: String,
    /// In the table's order.
    pub(crate) columns: Vec<Column>,
    /// Indexes into `columns`, in the order of the primary key. Never empty; every kind has an order expression.
    pub(crate) key: Vec<usize>,
}

impl Table {
    /// The select list: every column in order, some as text.
    pub(crate) fn select_list(&self) -> String {
        let expressions = self
            .columns
            .iter()
            .map(|c| c.kind.select_expression(&quote_identifier(&c.name)));
        expressions.collect::<Vec<_>>().join(", ")
    }

    /// The ORDER BY list that sorts rows as their encoded keys sort.
    pub(crate) fn order_list(&self) -> String {
        let expressions = self.key.iter().filter_map(|&index| {
            let column = &self.columns[index];
            column
                .kind
                .order_expression(&quote_identifier(&column.name))
                .map(|(expression, _)| expression)
        });
        expressions.collect::<Vec<_>>().join(", ")
    }

    /// The first column of the primary key.
    pub(crate) fn first_key_column(&self) -> &Column {
        &self.columns[self.key[0]]
    }
}

/// `schema.table`; names that contain a dot or a quote are quoted, so that different tables have different names.
fn keyspace_name(schema: &str, table: &str) -> String {
    let part = |name: &str| match name.contains(['.', '"']) {
        true => quote_identifier(name),
        false => name.to_owned(),
    };
    format!("{}.{}", part(schema), part(table))
}

const TABLES: &str = "
    SELECT c.oid, n.nspname::text, c.relname::text, c.relkind = 'p'
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence <> 't'
      AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_(toast|temp)'
    ORDER BY n.nspname::text COLLATE \"C\", c.relname::text COLLATE \"C\"";

const COLUMNS: &str = "
    SELECT attrelid, attname::text, atttypid FROM pg_attribute
    WHERE attrelid = ANY($1) AND attnum > 0 AND NOT attisdropped ORDER BY attrelid, attnum";

// Columns that an index only INCLUDEs follow its keys.
const KEYS: &str = "
    SELECT i.indrelid, a.attname::text
    FROM pg_index i CROSS JOIN LATERAL unnest(i.indkey) WITH ORDINALITY AS k(attnum, place)
    JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
    WHERE i.indisprimary AND i.indrelid = ANY($1) AND k.place <= i.indnkeyatts
    ORDER BY i.indrelid, k.place";

// A true array type is the one its element type names as its array.
const TYPES: &str = "
    SELECT t.oid, t.typname::text, n.nspname::text, t.typtype, t.typbasetype,
           (SELECT e.oid FROM pg_type e WHERE e.typarray = t.oid)
    FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace";

/// All tables that can be imported, by name, and all obstacles in the others.
///
/// An obstacle is an error unless `skip`: then its table is left out and the obstacle returned.
pub(crate) async fn supported_tables(
    session: &Session,
    skip: bool,
) -> Result<(Vec<Table>, Vec<Unsupported>), MigrateError> {
    let (tables, obstacles) = list(session).await?;
    if obstacles.is_empty() || skip {
        Ok((tables, obstacles))
    } else {
        Err(MigrateError::Unsupported(obstacles))
    }
}

async fn list(session: &Session) -> Result<(Vec<Table>, Vec<Unsupported>), MigrateError> {
    let context = "listing the tables";
    let types = types(session).await?;
    let found = session.query(context, TABLES, &[]).await?;
    let oids = found
        .iter()
        .map(|row| session.column(context, row, 0))
        .collect::<Result<Vec<u32>, _>>()?;
    let mut columns: HashMap<u32, Vec<(String, u32)>> = HashMap::new();
    for row in session.query(context, COLUMNS, &[&oids]).await? {
        let column = (
            session.column(context, &row, 1)?,
            session.column(context, &row, 2)?,
        );
        columns
            .entry(session.column(context, &row, 0)?)
            .or_default()
            .push(column);
    }
    let mut keys: HashMap<u32, Vec<String>> = HashMap::new();
    for row in session.query(context, KEYS, &[&oids]).await? {
        keys.entry(session.column(context, &row, 0)?)
            .or_default()
            .push(session.column(context, &row, 1)?);
    }
    let (mut tables, mut obstacles) = (Vec::new(), Vec::new());
    for (row, oid) in found.iter().zip(oids) {
        let schema: String = session.column(context, row, 1)?;
        let table: String = session.column(context, row, 2)?;
        let partitioned: bool = session.column(context, row, 3)?;
        let only = if partitioned { "" } else { "ONLY " };
        let from = format!("{only}{}.{}", quote_identifier(&schema), quote_identifier(&table));
        let name = keyspace_name(&schema, &table);
        let columns = columns.remove(&oid).unwrap_or_default();
        let key = keys.remove(&oid).unwrap_or_default();
        match check(&types, &name, columns, &key) {
            Ok((columns, key)) => tables.push(Table {
                oid,
                name,
                from,
                columns,
                key,
            }),
            Err(mut found) => obstacles.append(&mut found),
        }
    }
    Ok((tables, obstacles))
}

/// The longest name of a keyspace, in bytes; the store's own limit.
const KEYSPACE_NAME_BYTES_MAX: usize = 128;

type Checked = (Vec<Column>, Vec<usize>);

/// A table's columns and key, or everything that is wrong with them.
fn check(
    types: &Types,
    table: &str,
    columns: Vec<(String, u32)>,
    key: &[String],
) -> Result<Checked, Vec<Unsupported>> {
    let mut obstacles = Vec::new();
    let mut obstacle = |column: Option<&str>, reason: String| {
        obstacles.push(Unsupported {
            table: table.to_owned(),
            column: column.map(str::to_owned),
            reason,
        });
    };
    if table.len() > KEYSPACE_NAME_BYTES_MAX || table.contains(char::is_control) {
        obstacle(
            None,
            format!(
                "its name cannot be a keyspace's: over {KEYSPACE_NAME_BYTES_MAX} bytes, or control characters"
            ),
        );
    }
    if key.is_empty() {
        obstacle(None, "it has no primary key".to_owned());
    }
    let mut kinds = Vec::new();
    for (name, oid) in columns {
        match classify(types, oid) {
            Ok(kind) => {
                if key.contains(&name) && kind.order_expression("").is_none() {
                    obstacle(Some(&name), format!("a {kind:?} cannot be part of a key"));
                }
                kinds.push(Column { name, kind });
            }
            Err(reason) => obstacle(Some(&name), reason),
        }
    }
    if !obstacles.is_empty() {
        return Err(obstacles);
    }
    let place = |name: &String| kinds.iter().position(|column| column.name == *name);
    match key.iter().map(place).collect::<Option<Vec<usize>>>() {
        Some(key) => Ok((kinds, key)),
        None => {
            let reason = "its primary key names a column that it does not have".to_owned();
            Err(vec![Unsupported {
                table: table.to_owned(),
                column: None,
                reason,
            }])
        }
    }
}

async fn types(session: &Session) -> Result<Types, MigrateError> {
    let context = "listing the types";
    let mut types = Types::new();
    for row in session.query(context, TYPES, &[]).await? {
        let class: i8 = session.column(context, &row, 3)?;
        let ty = PgType {
            name: session.column(context, &row, 1)?,
            schema: session.column(context, &row, 2)?,
            class: class as u8,
            base: session.column(context, &row, 4)?,
            element: session.column(context, &row, 5)?,
        };
        types.insert(session.column(context, &row, 0)?, ty);
    }
    Ok(types)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keyspace_names_of_different_tables_differ() {
        assert_eq!(keyspace_name("public", "film"), "public.film");
        assert_eq!(keyspace_name("public", "Film É 1"), "public.Film É 1");
        assert_ne!(keyspace_name("a.b", "c"), keyspace_name("a", "b.c"));
        assert_ne!(keyspace_name("a", "b\".\"c"), keyspace_name("a\".\"b", "c"));
    }
}
