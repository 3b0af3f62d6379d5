//! `export`: a whole keyspace as JSON lines.

use std::fs::{self, File};
use std::io::{BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use reelkv_client::{Keyspace, ScanRange, TryStreamExt};

use super::failure::{Failure, Outcome, Status};
use super::keys::KeyspaceArgs;
use super::output::{Out, human_count, human_ms, tell};
use super::render::record_json;
use crate::clock;

/// Bytes fetched at a time.
const PAGE_BYTES: u32 = 1 << 20;
/// Without a terminal, how far it is is said this often.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// The clock is looked at once in so many records.
const RECORDS_PER_LOOK: u64 = 256;

/// Write all records of a keyspace as JSON lines
#[derive(Args, Clone, Debug)]
pub(crate) struct ExportArgs {
    /// Write to this file, which appears when it is complete; - is standard output
    #[arg(long, short, value_name = "FILE", default_value = "-")]
    output: PathBuf,
    /// Give every value byte by byte, in hexadecimal, so that it can be restored exactly
    #[arg(long)]
    hex_values: bool,
    #[command(flatten)]
    keyspace: KeyspaceArgs,
}

pub(crate) async fn export(args: ExportArgs) -> Outcome {
    let keyspace = args.keyspace.connect.keyspace(&args.keyspace.keyspace).await?;
    let records = if args.output == Path::new("-") {
        let mut out = Out::new();
        let records = copy(&keyspace, &args, |line| out.line(line)).await?;
        out.flush()?;
        records
    } else {
        let mut file = NewFile::create(&args.output)?;
        let records = copy(&keyspace, &args, |line| file.line(line)).await?;
        file.finish()?;
        records
    };
    let name = keyspace.name();
    tell(&format!("exported {} records of {name}", human_count(records)));
    Ok(Status::Fine)
}

/// Hands every record to `write`, as a line without its end; returns how many there were.
async fn copy(
    keyspace: &Keyspace,
    args: &ExportArgs,
    mut write: impl FnMut(&str) -> Result<(), Failure>,
) -> Result<u64, Failure> {
    let mut records = keyspace.scan(ScanRange::all().page_bytes(PAGE_BYTES));
    let mut progress = Progress::new();
    while let Some(record) = records.try_next().await? {
        write(&record_json(&record, args.keyspace.form, args.hex_values).to_string())?;
        progress.one_more();
    }
    Ok(progress.records)
}

/// How far it is: a spinner on a terminal, a line now and then elsewhere.
struct Progress {
    records: u64,
    started: clock::Instant,
    next_line: clock::Instant,
    bar: Option<ProgressBar>,
}

impl Progress {
    fn new() -> Self {
        let now = clock::now();
        Self {
            records: 0,
            started: now,
            next_line: now + LINE_EVERY,
            bar: std::io::stderr().is_terminal().then(spinner),
        }
    }

    fn one_more(&mut self) {
        self.records += 1;
        if !self.records.is_multiple_of(RECORDS_PER_LOOK) {
            return;
        }
        if let Some(bar) = &self.bar {
            bar.set_position(self.records);
            return;
        }
        let now = clock::now();
        if now >= self.next_line {
            self.next_line = now + LINE_EVERY;
            let elapsed = human_ms((now - self.started).as_millis() as u64);
            tell(&format!(
                "export: {} records after {elapsed}",
                human_count(self.records)
            ));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn spinner() -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {human_pos} records, {per_sec}, {elapsed}");
    ProgressBar::new_spinner().with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
}

/// A file of the user's that takes its name only when it is complete.
struct NewFile {
    path: PathBuf,
    /// Where it is written; the same as `path` for what is no regular file, such as a pipe.
    written: PathBuf,
    file: BufWriter<File>,
    is_complete: bool,
}

#[allow(clippy::disallowed_methods)] // the user's own files
impl NewFile {
    fn create(path: &Path) -> Result<Self, Failure> {
        let written = match fs::metadata(path) {
            Ok(existing) if !existing.is_file() => path.to_owned(),
            _ => {
                let mut name = path.as_os_str().to_owned();
                name.push(".part");
                PathBuf::from(name)
            }
        };
        let file = File::create(&written).map_err(|error| Failure::file(&written, &error))?;
        Ok(Self {
            path: path.to_owned(),
            written,
            file: BufWriter::new(file),
            is_complete: false,
        })
    }

    fn line(&mut self, line: &str) -> Result<(), Failure> {
        let written = self.file.write_all(line.as_bytes());
        let written = written.and_then(|()| self.file.write_all(b"\n"));
        written.map_err(|error| Failure::file(&self.written, &error))
    }

    fn finish(mut self) -> Result<(), Failure> {
        let mut done = self.file.flush();
        if self.written != self.path {
            done = done
                .and_then(|()| self.file.get_ref().sync_all())
                .and_then(|()| fs::rename(&self.written, &self.path));
        }
        done.map_err(|error| Failure::file(&self.path, &error))?;
        self.is_complete = true;
        Ok(())
    }
}

#[allow(clippy::disallowed_methods)] // the user's own files
impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.is_complete
            && self.written != self.path
            && let Err(error) = fs::remove_file(&self.written)
        {
            tell(&format!(
                "{} could not be removed: {error}",
                self.written.display()
            ));
        }
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)] // the tests' own files
mod tests {
    use super::*;

    #[test]
    fn a_file_takes_its_name_only_when_complete() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("film.jsonl");
        fs::write(&path, "old\n").unwrap();

        let mut given_up = NewFile::create(&path).unwrap();
        given_up.line("half").unwrap();
        drop(given_up);
        assert_eq!(fs::read_to_string(&path).unwrap(), "old\n");

        let mut file = NewFile::create(&path).unwrap();
        file.line("new").unwrap();
        file.finish().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new\n");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_device_is_written_to_and_not_replaced() {
        let path = Path::new("/dev/null");
        let mut file = NewFile::create(path).unwrap();
        file.line("gone").unwrap();
        file.finish().unwrap();
        assert!(!fs::metadata(path).unwrap().is_file());
        let nowhere = NewFile::create(Path::new("/nowhere/x")).err().unwrap();
        assert_eq!(nowhere.status, Status::No);
    }
}
