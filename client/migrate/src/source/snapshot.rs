//! One snapshot seen by many connections, and the guard against statements that do not respect snapshots.

use crate::error::MigrateError;
use crate::source::{Server, Session, Table};

/// A transaction that keeps its snapshot alive for others. Ends when dropped.
pub(crate) struct Snapshot {
    server: Server,
    /// The connection that exported it; free for queries, as long as none of them fails.
    pub(crate) session: Session,
    /// What the others adopt.
    pub(crate) id: String,
}

impl Snapshot {
    pub(crate) async fn export(server: &Server) -> Result<Snapshot, MigrateError> {
        let session = server.connect().await?;
        let context = "exporting a snapshot";
        session
            .execute(context, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            .await?;
        let rows = session.query(context, "SELECT pg_export_snapshot()", &[]).await?;
        let row = rows.first().ok_or_else(|| MigrateError::Decode {
            context: context.to_owned(),
            reason: "no snapshot was returned".to_owned(),
        })?;
        let id = session.column(context, row, 0)?;
        Ok(Snapshot {
            server: server.clone(),
            session,
            id,
        })
    }

    /// Another connection that sees the same state.
    pub(crate) async fn join(&self) -> Result<Session, MigrateError> {
        let session = self.server.connect().await?;
        let sql = format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}",
            super::quote_literal(&self.id)
        );
        session.execute("adopting the snapshot", &sql).await?;
        Ok(session)
    }
}

/// What the snapshot knows of a table's files and partitions against what there is now: catalog tables are read under
/// the snapshot, the two functions look at the present. A partition made since is fine: it is empty in the snapshot.
const SHAPE: &str = "
    WITH RECURSIVE known(oid) AS (
        SELECT $1::oid
        UNION SELECT i.inhrelid FROM pg_inherits i JOIN known ON i.inhparent = known.oid
        WHERE EXISTS (SELECT FROM pg_class r WHERE r.oid = $1 AND r.relkind = 'p')
    ), present(oid) AS (
        SELECT $1::oid UNION SELECT relid::oid FROM pg_partition_tree($1::oid::regclass)
    )
    SELECT c.relname::text, c.oid IN (SELECT oid FROM known) AND c.oid IN (SELECT oid FROM present)
    FROM pg_class c
    WHERE (c.oid IN (SELECT oid FROM known) OR c.oid IN (SELECT oid FROM present))
      AND (coalesce(pg_relation_filenode(c.oid), 0) <> c.relfilenode
           OR (c.oid IN (SELECT oid FROM known)) <> (c.oid IN (SELECT oid FROM present)))";

impl Session {
    /// Holds the table as it is, and proves that it still is what the snapshot knows. To be followed by
    /// [`Session::release`]; in between the table can be read and changed, but not truncated, rewritten or dropped.
    pub(crate) async fn hold(&self, table: &Table) -> Result<(), MigrateError> {
        let sql = format!("SAVEPOINT held; LOCK TABLE {} IN ACCESS SHARE MODE", table.from);
        self.execute(&table.name, &sql).await?;
        let rows = self.query(&table.name, SHAPE, &[&table.oid]).await?;
        let Some(row) = rows.first() else { return Ok(()) };
        let name: String = self.column(&table.name, row, 0)?;
        let same_tree: bool = self.column(&table.name, row, 1)?;
        let what = if same_tree {
            "was truncated, rewritten or dropped"
        } else {
            "was attached or detached"
        };
        Err(MigrateError::TableVanished {
            table: table.name.clone(),
            reason: format!("{name} {what} after the snapshot was taken"),
        })
    }

    /// Ends what [`Session::hold`] began.
    pub(crate) async fn release(&self, table: &Table) -> Result<(), MigrateError> {
        self.execute(&table.name, "ROLLBACK TO SAVEPOINT held; RELEASE SAVEPOINT held")
            .await
    }
}
