//! `import postgres` and `verify postgres`.

use std::sync::Arc;

use clap::{Args, Subcommand};
use reelkv_client::Client;
use reelkv_client::v1::Directory;
use reelkv_migrate::{
    ClientTarget, ImportOptions, ImportReport, Mismatch, MismatchKind, Progress, TableVerify, Unsupported,
    VerifyOptions, VerifyReport, import, verify,
};
use serde::Serialize;
use serde_json::Value as Json;

use super::connect::ConnectArgs;
use super::failure::{Failure, Outcome, Status};
use super::output::{OutputArgs, Table, human_count, print, print_json, tell, verdict};

/// The most shards an import spreads a database over.
const SHARDS_MAX: u32 = 800;

/// Copy tables of a running database
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum ImportCommand {
    Postgres(ImportArgs),
}

/// Compare keyspaces with the tables they were copied from
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum VerifyCommand {
    Postgres(VerifyArgs),
}

/// What both directions need.
#[derive(Args, Clone, Debug)]
struct SourceArgs {
    /// postgres://user:password@host:port/database; ?host=/directory for a socket
    #[arg(long, env = "REELKV_POSTGRES_URL", hide_env_values = true, value_name = "URL")]
    url: String,
    /// Connections to PostgreSQL that read at the same time; one more is needed
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    parallel: u32,
    /// Leave out and report tables that cannot be copied, instead of refusing the whole database
    #[arg(long)]
    skip_unsupported: bool,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// Make every keyspace schema.table equal to its table; may be run again at any time
#[derive(Args, Clone, Debug)]
pub(crate) struct ImportArgs {
    #[command(flatten)]
    source: SourceArgs,
    /// Read at most this many rows per second
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max_rows_per_second: Option<u64>,
    /// Spread the rows over this many shards [default: as many as the cluster began with]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(SHARDS_MAX)))]
    shards: Option<u32>,
}

/// Report rows that are missing, different or extra; exit status 1 if there are any
#[derive(Args, Clone, Debug)]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    source: SourceArgs,
}

pub(crate) async fn run_import(command: ImportCommand) -> Outcome {
    let ImportCommand::Postgres(args) = command;
    let source = args.source;
    let client = source.connect.client().await?;
    let shards = match args.shards {
        Some(shards) => shards,
        None => cluster(&client).await?.initial_shards.clamp(1, SHARDS_MAX),
    };
    let options = ImportOptions {
        url: source.url,
        shards,
        parallel: source.parallel as usize,
        max_rows_per_second: args.max_rows_per_second,
        skip_unsupported: source.skip_unsupported,
        progress: Progress::Auto,
    };
    let report = import(options, Arc::new(ClientTarget::new(client))).await?;
    tell_skipped(&report.skipped);
    match source.output.json {
        true => print_json(&json_of(&report)?)?,
        false => print(&import_text(&report))?,
    }
    Ok(Status::Fine)
}

pub(crate) async fn run_verify(command: VerifyCommand) -> Outcome {
    let VerifyCommand::Postgres(args) = command;
    let source = args.source;
    let client = source.connect.client().await?;
    cluster(&client).await?;
    let options = VerifyOptions {
        url: source.url,
        parallel: source.parallel as usize,
        skip_unsupported: source.skip_unsupported,
        progress: Progress::Auto,
    };
    let report = verify(options, Arc::new(ClientTarget::new(client))).await?;
    tell_skipped(&report.skipped);
    let printed = match source.output.json {
        true => print_json(&json_of(&report)?),
        false => print(&verify_text(&report)),
    };
    verdict(verify_status(&report), printed)
}

fn verify_status(report: &VerifyReport) -> Status {
    match report.clean {
        true => Status::Fine,
        false => Status::No,
    }
}

/// The map of the cluster. Before there is one, every keyspace would seem to be missing.
async fn cluster(client: &Client) -> Result<Directory, Failure> {
    let directory = client.admin().directory().await?;
    match directory.cluster_id.is_empty() {
        true => Err(Failure::no(
            "there is no cluster yet; make one with `reelkv cluster init`",
        )),
        false => Ok(directory),
    }
}

fn tell_skipped(skipped: &[Unsupported]) {
    for one in skipped {
        tell(&format!("skipped: {one}"));
    }
}

fn json_of(report: &impl Serialize) -> Result<Json, Failure> {
    serde_json::to_value(report).map_err(|error| Failure::no(format!("the report has no JSON: {error}")))
}

fn import_text(report: &ImportReport) -> String {
    let mut table = Table::new(&["KEYSPACE", "#ROWS", "#WRITTEN", "#DELETED", "#PIECES"]);
    for one in &report.tables {
        table.row([
            one.table.clone(),
            one.rows.to_string(),
            one.written.to_string(),
            one.deleted.to_string(),
            one.pieces.to_string(),
        ]);
    }
    let written = report.tables.iter().map(|table| table.written).sum();
    format!(
        "{}\n{} rows in {} tables of {}; {} rows had to be written\n",
        table.text(),
        human_count(report.rows()),
        report.tables.len(),
        report.source,
        human_count(written),
    )
}

fn verify_text(report: &VerifyReport) -> String {
    let mut table = Table::new(&["KEYSPACE", "#ROWS", "#MISSING", "#DIFFERENT", "#EXTRA", "NOTE"]);
    let cells = |one: &TableVerify, note: &str| {
        [
            one.table.clone(),
            one.rows.to_string(),
            one.missing.to_string(),
            one.different.to_string(),
            one.extra.to_string(),
            note.to_owned(),
        ]
    };
    for one in &report.tables {
        let note = match one.keyspace_missing {
            true => "there is no such keyspace",
            false => "",
        };
        table.row(cells(one, note));
    }
    table.row(cells(&total(report), ""));
    let mut text = table.text();
    for (table, mismatch) in report
        .tables
        .iter()
        .flat_map(|one| one.mismatches.iter().map(|mismatch| (&one.table, mismatch)))
    {
        text.push_str(&mismatch_text(table, mismatch));
    }
    let tables = report.tables.len();
    text.push_str(&match report.clean {
        true => format!(
            "\nequal: {} rows in {tables} tables\n",
            human_count(report.rows())
        ),
        false => format!("\nnot equal to {}\n", report.source),
    });
    text
}

fn total(report: &VerifyReport) -> TableVerify {
    let mut total = TableVerify {
        table: "total".to_owned(),
        ..TableVerify::default()
    };
    for one in &report.tables {
        total.rows += one.rows;
        total.missing += one.missing;
        total.different += one.different;
        total.extra += one.extra;
    }
    total
}

/// A row that is not equal, and its columns.
fn mismatch_text(table: &str, mismatch: &Mismatch) -> String {
    let kind = match mismatch.kind {
        MismatchKind::Missing => "missing",
        MismatchKind::Different => "different",
        MismatchKind::Extra => "extra",
    };
    let mut text = format!("\n{kind}: {table} {}\n", mismatch.key);
    let shown = |value: &Option<String>| {
        value
            .as_ref()
            .map_or_else(|| "none".to_owned(), |v| format!("{v:?}"))
    };
    for column in &mismatch.columns {
        text.push_str(&format!(
            "  {}: {} in the table, {} in the keyspace\n",
            column.column,
            shown(&column.source),
            shown(&column.stored)
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use reelkv_migrate::{ColumnDifference, TableImport};
    use serde_json::json;

    use super::*;

    #[test]
    fn an_import_is_a_table_of_keyspaces() {
        let report = ImportReport {
            job: "j".to_owned(),
            run: 1,
            previous: None,
            source: "localhost:5432/pagila".to_owned(),
            snapshot: "s".to_owned(),
            tables: vec![TableImport {
                table: "public.film".to_owned(),
                rows: 1_000,
                written: 999,
                deleted: 2,
                pieces: 3,
            }],
            skipped: Vec::new(),
        };
        let expected = "\
KEYSPACE     ROWS  WRITTEN  DELETED  PIECES
public.film  1000      999        2       3

1,000 rows in 1 tables of localhost:5432/pagila; 999 rows had to be written
";
        assert_eq!(import_text(&report), expected);
        assert_eq!(json_of(&report).unwrap()["tables"][0]["rows"], 1_000);
    }

    fn verified(tables: Vec<TableVerify>) -> VerifyReport {
        VerifyReport {
            clean: tables.iter().all(TableVerify::is_clean),
            source: "localhost:5432/pagila".to_owned(),
            tables,
            missing_keyspaces: Vec::new(),
            skipped: Vec::new(),
        }
    }

    #[test]
    fn a_verification_counts_per_keyspace_and_names_the_first_rows() {
        let film = TableVerify {
            table: "public.film".to_owned(),
            rows: 10,
            stored_rows: 10,
            different: 1,
            mismatches: vec![Mismatch {
                kind: MismatchKind::Different,
                key: json!([7]),
                columns: vec![ColumnDifference {
                    column: "title".to_owned(),
                    source: Some("ALIEN".to_owned()),
                    stored: None,
                }],
            }],
            ..TableVerify::default()
        };
        let actor = TableVerify {
            table: "public.actor".to_owned(),
            rows: 5,
            missing: 5,
            keyspace_missing: true,
            ..TableVerify::default()
        };
        let report = verified(vec![actor, film]);
        let expected = "\
KEYSPACE      ROWS  MISSING  DIFFERENT  EXTRA  NOTE
public.actor     5        5          0      0  there is no such keyspace
public.film     10        0          1      0
total           15        5          1      0

different: public.film [7]
  title: \"ALIEN\" in the table, none in the keyspace

not equal to localhost:5432/pagila
";
        assert_eq!(verify_text(&report), expected);
        assert_eq!(verify_status(&report), Status::No);
    }

    #[test]
    fn equal_sides_are_fine() {
        let film = TableVerify {
            table: "public.film".to_owned(),
            rows: 1_000,
            stored_rows: 1_000,
            ..TableVerify::default()
        };
        let report = verified(vec![film]);
        assert!(verify_text(&report).ends_with("\nequal: 1,000 rows in 1 tables\n"));
        assert_eq!(verify_status(&report), Status::Fine);
    }
}
