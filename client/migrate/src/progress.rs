//! What people see while it runs: bars on a terminal, plain lines elsewhere.

use std::collections::HashMap;
use std::fmt;
use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tokio::time::Instant;

/// Without a terminal, a table that is not done says so this often.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Rows are copied.
    Import,
    /// Rows are compared.
    Verify,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Phase::Import => "import",
            Phase::Verify => "verify",
        })
    }
}

/// How far a table is.
#[derive(Clone, Debug)]
pub struct ProgressEvent {
    /// What is being done.
    pub phase: Phase,
    /// `schema.table`.
    pub table: String,
    /// Rows read so far.
    pub rows_done: u64,
    /// Rows the table has under the snapshot.
    pub rows_total: u64,
    /// Whether the table is done.
    pub finished: bool,
}

/// Where progress goes.
#[derive(Clone, Default)]
pub enum Progress {
    /// To standard error: bars on a terminal, plain lines otherwise.
    #[default]
    Auto,
    /// Nowhere.
    Silent,
    /// To a function, called after every batch of rows; it must return quickly.
    Call(Arc<dyn Fn(&ProgressEvent) + Send + Sync>),
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Progress::Auto => "Auto",
            Progress::Silent => "Silent",
            Progress::Call(_) => "Call",
        })
    }
}

enum Output {
    Silent,
    Call(Arc<dyn Fn(&ProgressEvent) + Send + Sync>),
    Lines,
    Bars(MultiProgress),
}

struct TableProgress {
    done: u64,
    total: u64,
    last_line: Instant,
    bar: Option<ProgressBar>,
}

/// Counts rows per table and shows them. One per import or verification, shared by its workers.
pub(crate) struct Reporter {
    phase: Phase,
    output: Output,
    tables: Mutex<HashMap<String, TableProgress>>,
}

impl Reporter {
    pub(crate) fn new(phase: Phase, progress: Progress) -> Reporter {
        let output = match progress {
            Progress::Silent => Output::Silent,
            Progress::Call(f) => Output::Call(f),
            Progress::Auto if std::io::stderr().is_terminal() => Output::Bars(MultiProgress::new()),
            Progress::Auto => Output::Lines,
        };
        Reporter {
            phase,
            output,
            tables: Mutex::default(),
        }
    }

    /// A table is about to be read.
    pub(crate) fn begin(&self, table: &str, rows_total: u64) {
        let bar = match &self.output {
            Output::Bars(bars) => Some(bars.add(new_bar(table, rows_total))),
            _ => None,
        };
        let entry = TableProgress {
            done: 0,
            total: rows_total,
            last_line: Instant::now(),
            bar,
        };
        self.tables
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(table.to_owned(), entry);
    }

    /// More rows of the table were read.
    pub(crate) fn advance(&self, table: &str, rows: u64) {
        self.update(table, rows, false);
    }

    /// The table is done.
    pub(crate) fn finish(&self, table: &str) {
        self.update(table, 0, true);
    }

    fn update(&self, table: &str, rows: u64, finished: bool) {
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(entry) = tables.get_mut(table) else {
            return;
        };
        entry.done += rows;
        let event = ProgressEvent {
            phase: self.phase,
            table: table.to_owned(),
            rows_done: entry.done,
            rows_total: entry.total,
            finished,
        };
        if let Some(bar) = &entry.bar {
            bar.set_position(entry.done);
            if finished {
                bar.finish();
            }
        }
        let line_due = finished || entry.last_line.elapsed() >= LINE_EVERY;
        if line_due {
            entry.last_line = Instant::now();
        }
        drop(tables);
        match &self.output {
            Output::Call(f) => f(&event),
            Output::Lines if line_due => eprintln!("{}", line(&event)),
            _ => {}
        }
    }
}

fn line(event: &ProgressEvent) -> String {
    let ProgressEvent {
        phase,
        table,
        rows_done,
        rows_total,
        finished,
    } = event;
    let state = if *finished { "done" } else { "running" };
    format!("{phase} {table}: {rows_done} of {rows_total} rows, {state}")
}

fn new_bar(table: &str, rows_total: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg:32!} {wide_bar} {pos:>10}/{len} rows {per_sec:>14}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(rows_total)
        .with_style(style)
        .with_message(table.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_phase_table_and_rows() {
        let event = |rows_done, finished| ProgressEvent {
            phase: Phase::Import,
            table: "public.film".to_owned(),
            rows_done,
            rows_total: 1000,
            finished,
        };
        assert_eq!(
            line(&event(500, false)),
            "import public.film: 500 of 1000 rows, running"
        );
        assert_eq!(
            line(&event(1000, true)),
            "import public.film: 1000 of 1000 rows, done"
        );
    }
}
