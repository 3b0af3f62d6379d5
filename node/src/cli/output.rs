//! What commands print: data on standard output, words on standard error.

use std::io::{self, BufWriter, IsTerminal, StdoutLock, Write};

use clap::Args;
use serde_json::Value as Json;

use super::failure::{Failure, Outcome};

/// Whether to print for people or for programs.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct OutputArgs {
    /// Print JSON, one document or one per line
    #[arg(long)]
    pub(crate) json: bool,
}

/// Standard output, buffered; to be flushed at the end, as errors show there.
pub(crate) struct Out(BufWriter<StdoutLock<'static>>);

impl Out {
    pub(crate) fn new() -> Self {
        Self(BufWriter::new(io::stdout().lock()))
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.0.write_all(bytes).map_err(|error| Failure::stdout(&error))
    }

    pub(crate) fn line(&mut self, line: &str) -> Result<(), Failure> {
        self.bytes(line.as_bytes())?;
        self.bytes(b"\n")
    }

    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        self.0.flush().map_err(|error| Failure::stdout(&error))
    }
}

/// Says something to people, in one line on standard error. Nobody is left to tell if that is closed.
pub(crate) fn tell(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Prints `text`, which ends with its own newline.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut out = Out::new();
    out.bytes(text.as_bytes())?;
    out.flush()
}

/// Prints one JSON document: indented for a terminal, in one line otherwise.
pub(crate) fn print_json(json: &Json) -> Result<(), Failure> {
    let text = match io::stdout().is_terminal() {
        true => format!("{json:#}\n"),
        false => format!("{json}\n"),
    };
    print(&text)
}

/// Lets a verdict stand although whoever read the output has gone.
pub(crate) fn verdict(status: super::failure::Status, printed: Result<(), Failure>) -> Outcome {
    match printed {
        Err(failure) if failure.message.is_some() => Err(failure),
        _ => Ok(status),
    }
}

/// A table whose columns are as wide as their longest cell.
pub(crate) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

#[derive(Clone, Copy)]
struct Column {
    title: &'static str,
    is_number: bool,
}

/// Columns are this far apart.
const GAP: &str = "  ";

impl Table {
    /// Titles; one that begins with `#` is of a column of numbers, which stand to the right.
    pub(crate) fn new(titles: &[&'static str]) -> Self {
        let column = |title: &&'static str| match title.strip_prefix('#') {
            Some(title) => Column {
                title,
                is_number: true,
            },
            None => Column {
                title,
                is_number: false,
            },
        };
        Self {
            columns: titles.iter().map(column).collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row with a cell for each column.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let cells: Vec<_> = cells.into_iter().map(|cell| one_line(&cell)).collect();
        assert_eq!(cells.len(), self.columns.len(), "a cell for each column");
        self.rows.push(cells);
    }

    /// The table as text, each line with its newline and no blanks before it.
    pub(crate) fn text(&self) -> String {
        let titles: Vec<String> = self
            .columns
            .iter()
            .map(|column| column.title.to_owned())
            .collect();
        let lines = || std::iter::once(&titles).chain(&self.rows);
        let width = |at: usize| lines().map(|cells| cells[at].chars().count()).max();
        let widths: Vec<usize> = (0..titles.len()).map(|at| width(at).unwrap_or(0)).collect();
        let mut text = String::new();
        for cells in lines() {
            let mut line = String::new();
            for ((cell, column), &width) in cells.iter().zip(&self.columns).zip(&widths) {
                let cell = match column.is_number {
                    true => format!("{cell:>width$}"),
                    false => format!("{cell:<width$}"),
                };
                line.push_str(&cell);
                line.push_str(GAP);
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Control characters, which could break the lines or the terminal, are escaped.
pub(crate) fn one_line(cell: &str) -> String {
    let shown = |c: char| match c.is_control() {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    };
    cell.chars().map(shown).collect()
}

/// A size for people: `0 B`, `999 B`, `1.5 KiB`, `3.0 GiB`.
pub(crate) fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let (mut size, mut unit) = (bytes as f64 / 1024.0, 0);
    // What would be rounded to 1024.0 is 1.0 of the next unit.
    while size >= 1023.95 && unit + 1 < UNITS.len() {
        size /= 1024.0;
        unit += 1;
    }
    format!("{size:.1} {}", UNITS[unit])
}

/// A number with its thousands apart: `1,234,567`.
pub(crate) fn human_count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A span of time for people: `850 ms`, `12 s`, `3 min 20 s`, `5 h 1 min`, `2 d 3 h`.
pub(crate) fn human_ms(ms: u64) -> String {
    let s = ms / 1_000;
    match s {
        0 => format!("{ms} ms"),
        1..60 => format!("{s} s"),
        60..3_600 => format!("{} min {} s", s / 60, s % 60),
        3_600..86_400 => format!("{} h {} min", s / 3_600, s / 60 % 60),
        _ => format!("{} d {} h", s / 86_400, s / 3_600 % 24),
    }
}

/// Bytes in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads hexadecimal; `None` when it is not.
pub(crate) fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u32>> = text.chars().map(|c| c.to_digit(16)).collect();
    let digits = digits.filter(|digits| digits.len().is_multiple_of(2))?;
    let byte = |pair: &[u32]| (pair[0] << 4 | pair[1]) as u8;
    Some(digits.chunks_exact(2).map(byte).collect())
}

#[cfg(test)]
mod tests {
    use super::super::failure::Status;
    use super::*;

    #[test]
    fn a_table_aligns_words_left_and_numbers_right() {
        let mut table = Table::new(&["NAME", "#ROWS", "NOTE"]);
        table.row(["film", "1000", ""].map(str::to_owned));
        table.row(["übergröße", "7", "two\nlines\x1b[31m"].map(str::to_owned));
        let expected = "NAME       ROWS  NOTE\n\
                        film       1000\n\
                        übergröße     7  two\\nlines\\u{1b}[31m\n";
        assert_eq!(table.text(), expected);
        assert_eq!(Table::new(&["A", "#B"]).text(), "A  B\n");
    }

    #[test]
    #[should_panic(expected = "a cell for each column")]
    fn a_row_without_a_cell_is_a_defect() {
        Table::new(&["A", "B"]).row(["1".to_owned()]);
    }

    #[test]
    fn sizes_counts_and_times_are_for_people() {
        let sizes = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            (3 << 30, "3.0 GiB"),
            (u64::MAX, "16.0 EiB"),
        ];
        for (bytes, text) in sizes {
            assert_eq!(human_bytes(bytes), text);
        }
        for (number, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(human_count(number), text);
        }
        for (ms, text) in [
            (5, "5 ms"),
            (59_999, "59 s"),
            (200_000, "3 min 20 s"),
            (18_060_000, "5 h 1 min"),
            (183_600_000, "2 d 3 h"),
        ] {
            assert_eq!(human_ms(ms), text);
        }
    }

    #[test]
    fn hexadecimal_comes_back() {
        assert_eq!(hex(&[0, 0xff, 0x1a]), "00ff1a");
        assert_eq!(from_hex("00fF1a"), Some(vec![0, 0xff, 0x1a]));
        for text in ["0", "0g", "é0", "+1"] {
            assert_eq!(from_hex(text), None, "{text}");
        }
    }

    #[test]
    fn a_verdict_outlives_its_reader() {
        assert_eq!(verdict(Status::No, Err(Failure::closed())).unwrap(), Status::No);
        assert_eq!(verdict(Status::Fine, Ok(())).unwrap(), Status::Fine);
        let failure = verdict(Status::Fine, Err(Failure::no("disk full"))).unwrap_err();
        assert_eq!(failure.status, Status::No);
    }
}
