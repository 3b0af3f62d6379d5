//! `get`, `put`, `delete`, `add`, `scan`: the records of one keyspace.

use std::fmt::Display;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use reelkv_client::{Condition, ScanRange, TryStreamExt, limits};
use serde_json::{Value as Json, json};

use super::connect::ConnectArgs;
use super::failure::{Failure, Outcome, Status};
use super::output::{Out, OutputArgs, hex, print, print_json, tell};
use super::render::{KeyForm, Shown, check_length, integer, record_json};
use crate::config::units::duration_ms;

/// A keyspace, and how its keys are written.
#[derive(Args, Clone, Debug)]
pub(crate) struct KeyspaceArgs {
    /// Name of the keyspace
    #[arg(long, short, value_name = "NAME", value_parser = keyspace_name)]
    pub(crate) keyspace: String,
    #[command(flatten)]
    pub(crate) form: KeyForm,
    #[command(flatten)]
    pub(crate) connect: ConnectArgs,
}

/// Print the value of a key
#[derive(Args, Clone, Debug)]
pub(crate) struct GetArgs {
    /// The key, as a tuple like '(1, "abc")'
    key: String,
    #[command(flatten)]
    keyspace: KeyspaceArgs,
    #[command(flatten)]
    output: OutputArgs,
    /// Write the bytes of the value as they are
    #[arg(long, conflicts_with = "json")]
    raw: bool,
}

/// Write a value under a key; print the version of the write
#[derive(Args, Clone, Debug)]
pub(crate) struct PutArgs {
    /// The key, as a tuple like '(1, "abc")'
    key: String,
    /// The value; - reads it from standard input
    #[arg(required_unless_present = "file", allow_negative_numbers = true)]
    value: Option<String>,
    /// Read the value from a file
    #[arg(long, value_name = "FILE", conflicts_with = "value")]
    file: Option<PathBuf>,
    /// How long the key lives before it is absent again, e.g. 30s, 2h, 7d [default: until it is deleted]
    #[arg(long, value_name = "TIME")]
    ttl: Option<String>,
    /// Only if the key is absent
    #[arg(long, conflicts_with = "if_version")]
    if_absent: bool,
    /// Only if the key has this version
    #[arg(long, value_name = "VERSION", value_parser = clap::value_parser!(u64).range(1..))]
    if_version: Option<u64>,
    #[command(flatten)]
    keyspace: KeyspaceArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Delete a key; print the version of the deletion
#[derive(Args, Clone, Debug)]
pub(crate) struct DeleteArgs {
    /// The key, as a tuple like '(1, "abc")'
    key: String,
    /// Only if the key has this version
    #[arg(long, value_name = "VERSION", value_parser = clap::value_parser!(u64).range(1..))]
    if_version: Option<u64>,
    #[command(flatten)]
    keyspace: KeyspaceArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Add to the integer under a key (absent counts as 0); print the sum
#[derive(Args, Clone, Debug)]
pub(crate) struct AddArgs {
    /// The key, as a tuple like '(1, "abc")'
    key: String,
    /// What to add; may be negative
    #[arg(allow_negative_numbers = true)]
    delta: i64,
    #[command(flatten)]
    keyspace: KeyspaceArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Print keys and values in key order, one record a line
#[derive(Args, Clone, Debug)]
pub(crate) struct ScanArgs {
    /// Only keys that begin with this; of a tuple, with its elements
    #[arg(long, value_name = "KEY", conflicts_with_all = ["start", "end"])]
    prefix: Option<String>,
    /// First key wanted
    #[arg(long, value_name = "KEY")]
    start: Option<String>,
    /// First key not wanted
    #[arg(long, value_name = "KEY")]
    end: Option<String>,
    /// At most this many records
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    #[command(flatten)]
    keyspace: KeyspaceArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) async fn get(args: GetArgs) -> Outcome {
    let form = args.keyspace.form;
    let key = form.parse(&args.key)?;
    let keyspace = args.keyspace.connect.keyspace(&args.keyspace.keyspace).await?;
    let Some(record) = keyspace.get(&key).await? else {
        let shown = form.show(&key);
        return Err(Failure::no(format!("{shown} is absent from {}", keyspace.name())));
    };
    if args.output.json {
        print_json(&record_json(&record, form, false))?;
    } else if args.raw {
        let mut out = Out::new();
        out.bytes(&record.value)?;
        out.flush()?;
    } else {
        print_value(&record.value)?;
    }
    Ok(Status::Fine)
}

fn print_value(value: &[u8]) -> Result<(), Failure> {
    match Shown::of(value) {
        Shown::Row(row) => print_json(&row),
        Shown::Text(text) => print(&format!("{text}\n")),
        Shown::Bytes(bytes) => {
            let number = integer(bytes).map(|number| format!("; as an integer: {number}"));
            let count = bytes.len();
            tell(&format!(
                "note: {count} bytes in hexadecimal, --raw writes them as they are{}",
                number.unwrap_or_default()
            ));
            print(&format!("{}\n", hex(bytes)))
        }
    }
}

pub(crate) async fn put(args: PutArgs) -> Outcome {
    let key = args.keyspace.form.parse(&args.key)?;
    let value = match (&args.file, args.value) {
        (Some(path), _) => read_file(path)?,
        (None, Some(value)) if value == "-" => read_value(io::stdin().lock(), Path::new("standard input"))?,
        (None, value) => Bytes::from(value.unwrap_or_default()),
    };
    check_length("value", value.len(), limits::VALUE_BYTES_MAX)?;
    let ttl = args.ttl.as_deref().map(ttl).transpose()?;
    let condition = match (args.if_absent, args.if_version) {
        (true, _) => Some(Condition::Absent),
        (false, version) => version.map(Condition::Version),
    };
    let keyspace = args.keyspace.connect.keyspace(&args.keyspace.keyspace).await?;
    let version = match (ttl, condition) {
        (None, None) => keyspace.put(&key, value).await?,
        (None, Some(condition)) => keyspace.put_if(&key, value, condition).await?,
        (Some(ttl), None) => keyspace.put_with_ttl(&key, value, ttl).await?,
        (Some(ttl), Some(condition)) => keyspace.put_with_ttl_if(&key, value, ttl, condition).await?,
    };
    print_number("version", version, args.output)
}

/// What `--ttl` says.
fn ttl(text: &str) -> Result<Duration, Failure> {
    let longest_ms = limits::TTL_MAX.as_millis() as u64;
    match duration_ms(text, &(1..=longest_ms)) {
        Ok(ttl_ms) => Ok(Duration::from_millis(ttl_ms)),
        Err(_) => Err(Failure::bad_input(format!(
            "--ttl {text:?}: a time to live is a whole number and ms, s, m, h or d, from 1ms to {}d",
            longest_ms / 86_400_000
        ))),
    }
}

pub(crate) async fn delete(args: DeleteArgs) -> Outcome {
    let key = args.keyspace.form.parse(&args.key)?;
    let keyspace = args.keyspace.connect.keyspace(&args.keyspace.keyspace).await?;
    let version = match args.if_version.map(Condition::Version) {
        Some(condition) => keyspace.delete_if(&key, condition).await?,
        None => keyspace.delete(&key).await?,
    };
    print_number("version", version, args.output)
}

pub(crate) async fn add(args: AddArgs) -> Outcome {
    let key = args.keyspace.form.parse(&args.key)?;
    let keyspace = args.keyspace.connect.keyspace(&args.keyspace.keyspace).await?;
    let sum = keyspace.add(&key, args.delta).await?;
    print_number("value", sum, args.output)
}

pub(crate) async fn scan(args: ScanArgs) -> Outcome {
    let form = args.keyspace.form;
    let range = range(&args)?;
    let keyspace = args.keyspace.connect.keyspace(&args.keyspace.keyspace).await?;
    let mut records = keyspace.scan(range);
    let mut out = Out::new();
    while let Some(record) = records.try_next().await? {
        if args.output.json {
            out.line(&record_json(&record, form, false).to_string())?;
        } else {
            let value = Shown::of(&record.value).line();
            out.line(&format!("{}\t{value}", form.show(&record.key)))?;
        }
    }
    out.flush()?;
    Ok(Status::Fine)
}

fn range(args: &ScanArgs) -> Result<ScanRange, Failure> {
    let form = args.keyspace.form;
    let bound = |text: &Option<String>| text.as_deref().map_or(Ok(Bytes::new()), |text| form.parse(text));
    let range = match &args.prefix {
        Some(prefix) => form.prefix(prefix)?,
        None => ScanRange::between(bound(&args.start)?, bound(&args.end)?),
    };
    Ok(range.limit(args.limit.unwrap_or(0)))
}

fn print_number(name: &str, number: impl Into<Json> + Display, output: OutputArgs) -> Outcome {
    match output.json {
        true => print_json(&json!({ name: number.into() }))?,
        false => print(&format!("{number}\n"))?,
    }
    Ok(Status::Fine)
}

#[allow(clippy::disallowed_methods)] // the user's own files
fn read_file(path: &Path) -> Result<Bytes, Failure> {
    let file = File::open(path).map_err(|error| Failure::file(path, &error))?;
    read_value(file, path)
}

/// Reads a value, but no further than one byte over the limit.
fn read_value(from: impl Read, name: &Path) -> Result<Bytes, Failure> {
    let mut value = Vec::new();
    let max = limits::VALUE_BYTES_MAX;
    from.take(max as u64 + 1)
        .read_to_end(&mut value)
        .map_err(|error| Failure::file(name, &error))?;
    match value.len() <= max {
        true => Ok(value.into()),
        false => Err(Failure::bad_input(format!(
            "{}: a value has at most {max} bytes",
            name.display()
        ))),
    }
}

/// Checks the name of a keyspace.
pub(crate) fn keyspace_name(text: &str) -> Result<String, String> {
    let max = limits::KEYSPACE_NAME_BYTES_MAX;
    match text.is_empty() || text.len() > max || text.chars().any(char::is_control) {
        true => Err(format!(
            "a keyspace name has 1 to {max} bytes and no control characters"
        )),
        false => Ok(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_read_up_to_its_limit() {
        let name = Path::new("somewhere");
        let full = vec![7; limits::VALUE_BYTES_MAX];
        assert_eq!(read_value(&full[..], name).unwrap().len(), full.len());
        let failure = read_value(io::repeat(7), name).unwrap_err();
        assert_eq!(failure.status, Status::BadInput);
        assert!(failure.message.unwrap().contains("at most 4194304 bytes"));
        let missing = read_file(Path::new("/nowhere/at/all")).unwrap_err();
        assert_eq!(missing.status, Status::No);
        assert!(missing.message.unwrap().starts_with("/nowhere/at/all: "));
    }

    #[test]
    fn names_of_keyspaces_keep_their_limit() {
        assert_eq!(keyspace_name("public.film").as_deref(), Ok("public.film"));
        for name in ["", "a\nb", &"n".repeat(129)] {
            assert!(keyspace_name(name).unwrap_err().contains("1 to 128 bytes"));
        }
    }
}
