//! Histories as files, to be judged again.
//!
//! JSON lines: first the [`Header`], then one event a line in the order of completion, last
//! `{"events":n,"crc32":c}`, where c is the CRC-32 (IEEE) of all bytes before that line. A file
//! that does not match its last line is damaged: nothing is judged by it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Event;
use crate::checker::Verdict;

/// Number of this form of file.
pub const FORMAT: u32 = 2;

/// What was run, as far as judging needs it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// [`FORMAT`].
    pub format: u32,
    /// Name of the workload.
    pub workload: String,
    /// Names of the faults.
    pub nemeses: Vec<String>,
    /// The seed of everything.
    pub seed: u64,
    /// Nodes.
    pub nodes: usize,
    /// Data shards.
    pub shards: u32,
    /// Seconds of load.
    pub seconds: u64,
    /// Spans in which a clean quorum existed, in microseconds since the load began.
    pub clean_us: Vec<(u64, u64)>,
    /// What the judges said who look at more than the history.
    pub judged: BTreeMap<String, Verdict>,
}

#[derive(Serialize, Deserialize)]
struct End {
    events: usize,
    crc32: u32,
}

/// Why a history cannot be judged.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// It cannot be read.
    #[error("{file}: {source}")]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not as it was written.
    #[error("{file}, line {line}: {what}")]
    Damaged {
        /// The file.
        file: PathBuf,
        /// Where, counted from 1.
        line: usize,
        /// What is wrong.
        what: String,
    },
}

/// Keeps a history.
///
/// # Errors
/// The file cannot be written.
#[allow(clippy::disallowed_methods)] // a report is a file of this process, not of a node
pub fn write(file: &Path, header: &Header, history: &[Event]) -> io::Result<()> {
    let mut text = serde_json::to_string(header)? + "\n";
    for event in history {
        text.push_str(&serde_json::to_string(event)?);
        text.push('\n');
    }
    let end = End {
        events: history.len(),
        crc32: crc32fast::hash(text.as_bytes()),
    };
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{}", serde_json::to_string(&end)?);
    std::fs::write(file, text)
}

/// Reads a history that was kept.
///
/// # Errors
/// One line: the file cannot be read, or where it is damaged.
#[allow(clippy::disallowed_methods)] // a report is a file of this process, not of a node
pub fn read(file: &Path) -> Result<(Header, Vec<Event>), HistoryError> {
    let unreadable = |source| HistoryError::Unreadable {
        file: file.to_owned(),
        source,
    };
    let bytes = std::fs::read(file).map_err(unreadable)?;
    parse(&bytes).map_err(|(line, what)| HistoryError::Damaged {
        file: file.to_owned(),
        line,
        what,
    })
}

fn parse(bytes: &[u8]) -> Result<(Header, Vec<Event>), (usize, String)> {
    let text = std::str::from_utf8(bytes).map_err(|error| (1, error.to_string()))?;
    let last = text.lines().count();
    let body = text
        .strip_suffix('\n')
        .ok_or((last, "the file is cut short".to_owned()))?;
    let (body, end) = body
        .rsplit_once('\n')
        .ok_or((last, "the file is cut short".to_owned()))?;
    let end: End =
        serde_json::from_str(end).map_err(|error| (last, format!("not the end of a history: {error}")))?;
    let body = &text[..body.len() + 1];
    if crc32fast::hash(body.as_bytes()) != end.crc32 {
        return Err((last, "the checksum does not match what is before it".to_owned()));
    }
    let mut lines = body.lines().enumerate();
    let (_, header) = lines.next().ok_or((1, "the file is empty".to_owned()))?;
    let header: Header = serde_json::from_str(header).map_err(|error| (1, error.to_string()))?;
    if header.format != FORMAT {
        return Err((
            1,
            format!(
                "format {} is not {FORMAT}, the one this program reads",
                header.format
            ),
        ));
    }
    let event = |(number, line): (usize, &str)| {
        serde_json::from_str(line).map_err(|error: serde_json::Error| (number + 1, error.to_string()))
    };
    let events: Vec<Event> = lines.map(event).collect::<Result<_, _>>()?;
    match events.len() == end.events {
        true => Ok((header, events)),
        false => Err((
            last,
            format!("{} events, {} were written", events.len(), end.events),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Action, Answer, Outcome};

    fn small() -> (Header, Vec<Event>) {
        let header = Header {
            format: FORMAT,
            workload: "register".into(),
            nemeses: vec!["crash".into()],
            seed: 7,
            nodes: 3,
            shards: 3,
            seconds: 30,
            clean_us: vec![(0, 5)],
            judged: BTreeMap::from([("coverage".into(), Verdict::fail("nothing happened"))]),
        };
        let event = |client, outcome| Event {
            client,
            action: Action::Write { key: 1, value: 2 },
            outcome,
            invoked_us: 3,
            completed_us: 4,
        };
        let done = Outcome::Ok(Answer::Done { version: Some(9) });
        (
            header,
            vec![event(0, done), event(1, Outcome::Info("silence".into()))],
        )
    }

    #[test]
    fn a_history_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("history.jsonl");
        let (header, history) = small();
        write(&file, &header, &history).unwrap();
        assert_eq!(read(&file).unwrap(), (header, history));
        let missing = read(&dir.path().join("nothing")).unwrap_err().to_string();
        assert!(missing.contains("nothing"), "{missing}");
    }

    #[test]
    #[allow(clippy::disallowed_methods)]
    fn every_flipped_bit_and_every_cut_is_damage() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("history.jsonl");
        let (header, history) = small();
        write(&file, &header, &history).unwrap();
        let whole = std::fs::read(&file).unwrap();
        assert!(parse(&whole).is_ok());
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            if let Ok(same) = parse(&flipped) {
                // A bit in a space or a letter's case that JSON does not mind: read as it was.
                assert_eq!(same, (header.clone(), history.clone()), "bit {bit}");
            }
        }
        for len in 0..whole.len() {
            assert!(parse(&whole[..len]).is_err(), "cut to {len} bytes");
        }
        assert!(parse(&[&whole[..], b"{}\n"].concat()).is_err());
    }
}
