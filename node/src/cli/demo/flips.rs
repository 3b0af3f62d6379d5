//! Bytes flipped in the store and in the log of a node that runs, as a disk does that reports no error.
//!
//! What is flipped must be told by the node itself, within one cycle of its scrub: no request need meet it.
//! In the log, places are chosen in the newest segment while little of it is written, so that the log still
//! has it when the scrub comes by; the checksums of its header and of its last batches, and bytes of these
//! batches. What the node does not need any more when it is read is not told one by one: one fault stands
//! for all that is flipped in a file.

use std::io;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;

use super::damage::{self, Place, TableFile};
use super::faults::Tell;
use super::monitor::{Monitor, Seen};
use super::nodes::{NodeProcess, Nodes};
use super::report::{Fault, FaultKind};
use crate::clock::{Clock, SystemClock, now};
use crate::disk::{Disk, RealDisk, read_file};

/// Bytes flipped in one place.
const FLIPPED_BYTES: u64 = 8;
/// Trees, and batches of the log, in which bytes are flipped.
const TREES_MAX: usize = 2;
const BATCHES_MAX: usize = 3;
/// A new segment is waited for this long, if much of the newest is written.
const SEGMENT_PATIENCE: Duration = Duration::from_secs(10);
/// The store may have no table that is settled for a moment.
const TABLES_TRIES_MAX: usize = 20;
const TABLES_PAUSE: Duration = Duration::from_millis(250);
/// Times that bytes are flipped, if the files are given up before they are read.
const ATTEMPTS_MAX: usize = 4;
/// How long an answer of the nodes is waited for.
const ASK_PATIENCE: Duration = Duration::from_secs(3);
/// What was flipped must be told and repaired within this: a large log is read at a bounded rate, and what is
/// needed of a damaged segment is written again elsewhere first.
const TOLD_PATIENCE: Duration = Duration::from_secs(45);
/// Where the node's cluster stands in a segment's header, and what a batch of it begins with.
const HEADER_AT: u64 = 12;
const BATCH_MAGIC: &[u8] = b"RKVBATCH";

/// Flips bytes in the store and in the log of a running node, or only says so, and waits until the node has
/// told and repaired them. Begins again when a file was given up before the node had read it again.
pub(super) async fn inflict(
    nodes: &Nodes,
    monitor: &Monitor,
    at: usize,
    seed: u64,
    only_said: bool,
    tell: Tell<'_>,
) -> anyhow::Result<Vec<Fault>> {
    let node = &nodes.all[at];
    let mut faults: Vec<Fault> = Vec::new();
    for _ in 0..ATTEMPTS_MAX {
        let flipped = flip_all(node, seed, only_said, tell).await?;
        faults.extend(await_repair(flipped, monitor, (at, node), tell).await);
        let in_both = [true, false].map(|in_log| faults.iter().any(|fault| fault.is_in_log() == in_log));
        if only_said || in_both == [true, true] {
            break;
        }
    }
    if let Some(slowest) = faults.iter().map(|fault| fault.repaired_ms).max().flatten() {
        tell(format!(
            "{} told and repaired it, {slowest} ms after the damage",
            node.name
        ));
    }
    Ok(faults)
}

async fn flip_all(
    node: &NodeProcess,
    seed: u64,
    only_said: bool,
    tell: Tell<'_>,
) -> anyhow::Result<Vec<Fault>> {
    let looking = || format!("looking at the files of {}", node.name);
    // The log first: it may be waited for, and tables come and go meanwhile.
    let in_log = places_in_log(&node.data_dir).await.with_context(looking)?;
    let mut faults = flip(node, in_log, seed, only_said, tell)?;
    for _ in 0..TABLES_TRIES_MAX {
        let in_store = places_in_store(&node.data_dir, seed).with_context(looking)?;
        let flipped = flip(node, in_store, seed, only_said, tell)?;
        if !flipped.is_empty() {
            faults.extend(flipped);
            break;
        }
        tokio::time::sleep(TABLES_PAUSE).await;
    }
    Ok(faults)
}

/// Waits until each fault is repaired, or its file is gone and nothing was told of it: nothing is damaged then.
async fn await_repair(
    mut faults: Vec<Fault>,
    monitor: &Monitor,
    (at, node): (usize, &NodeProcess),
    tell: Tell<'_>,
) -> Vec<Fault> {
    let is_there = |fault: &Fault| {
        let file = fault.file.as_ref().map(|file| node.data_dir.join(file));
        file.is_some_and(|file| RealDisk.exists(&file).unwrap_or(true))
    };
    let deadline = now() + TOLD_PATIENCE;
    loop {
        // Before the node is asked: what it told of a file, it told before it gave the file up.
        let there: Vec<bool> = faults.iter().map(is_there).collect();
        let seen = monitor.wait(ASK_PATIENCE, |_| true).await;
        let seen = seen.unwrap_or_else(|| monitor.seen());
        for fault in &mut faults {
            (fault.detected_ms, fault.repaired_ms) = times(&seen, at, fault);
        }
        let is_gone = |(fault, there): (&Fault, &bool)| !there && fault.detected_ms.is_none();
        let is_settled = |pair: (&Fault, &bool)| pair.0.repaired_ms.is_some() || is_gone(pair);
        if faults.iter().zip(&there).all(is_settled) || now() > deadline {
            for (fault, _) in faults.iter().zip(&there).filter(|pair| is_gone(*pair)) {
                let file = fault.file.as_deref().unwrap_or_default();
                tell(format!(
                    "{}: {file} is no more, and was not read before",
                    node.name
                ));
            }
            let kept = faults.iter().zip(&there).filter(|pair| !is_gone(*pair));
            return kept.map(|(fault, _)| fault.clone()).collect();
        }
    }
}

/// Flips bytes of some files, or only says so. What is gone by then is left out.
fn flip(
    node: &NodeProcess,
    files: impl IntoIterator<Item = Vec<Place>>,
    seed: u64,
    only_said: bool,
    tell: Tell<'_>,
) -> anyhow::Result<Vec<Fault>> {
    let mut faults = Vec::new();
    for places in files {
        let at_ms = SystemClock.wall_ms();
        let flipped = places.iter().try_for_each(|place| match only_said {
            true => Ok(()),
            false => damage::overwrite(&node.data_dir, place, seed),
        });
        let Some(first) = places.first() else { continue };
        match flipped {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            flipped => flipped.with_context(|| format!("damaging {}", first.file.path))?,
        }
        let bytes = places.iter().map(|place| place.bytes).sum();
        let (file, count) = (&first.file, places.len());
        tell(format!(
            "{}: {bytes} bytes of {} flipped in {count} places while it runs",
            node.name, file.path
        ));
        faults.push(Fault {
            kind: FaultKind::Flip,
            node: node.name.clone(),
            pid: node.pid().unwrap_or_default(),
            file: Some(file.path.clone()),
            offset: Some(first.offset),
            bytes: Some(bytes),
            detected_ms: None,
            repaired_ms: None,
            shard_id: file.shard_id,
            at_ms,
        });
    }
    Ok(faults)
}

/// How long after a fault the node detected it, and repaired it.
fn times(seen: &Seen, at: usize, fault: &Fault) -> (Option<u64>, Option<u64>) {
    let found = match fault.is_in_log() {
        true => seen.log_damage(at, fault.at_ms),
        false => seen.damage(at, fault.shard_id, fault.at_ms),
    };
    let after = |ms: u64| ms - fault.at_ms;
    let detected = found.map(|(detected, _)| after(detected));
    (detected, found.and_then(|(_, repaired)| repaired).map(after))
}

/// One place in each of the largest trees.
fn places_in_store(data_dir: &Path, seed: u64) -> io::Result<Vec<Vec<Place>>> {
    let mut tables = damage::tables(data_dir)?;
    let now_ms = SystemClock.wall_ms();
    tables.retain(|table| damage::is_settled(data_dir, table, now_ms));
    let mut places: Vec<Place> = damage::choose(&tables, seed);
    places.dedup_by_key(|place| place.file.shard_id);
    places.truncate(TREES_MAX);
    let small = |place: Place| Place {
        bytes: FLIPPED_BYTES.min(place.bytes),
        ..place
    };
    Ok(places.into_iter().map(|place| vec![small(place)]).collect())
}

/// Places in the newest segment of the log.
async fn places_in_log(data_dir: &Path) -> io::Result<Option<Vec<Place>>> {
    let deadline = now() + SEGMENT_PATIENCE;
    loop {
        let segment = newest_segment(data_dir)?;
        let bytes = segment
            .as_ref()
            .map(|file| read_file(&RealDisk, &data_dir.join(&file.path)));
        if let (Some(file), Some(bytes)) = (segment, bytes.transpose()?) {
            let batches = batches(&bytes);
            let is_new = batches.last().is_some_and(|last| *last < bytes.len() / 4);
            if is_new || now() > deadline {
                return Ok(Some(places_in_segment(&file, &batches)));
            }
        }
        if now() > deadline {
            return Ok(None);
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

fn newest_segment(data_dir: &Path) -> io::Result<Option<TableFile>> {
    let names = RealDisk.list(&data_dir.join("wal"))?;
    let segments = names.into_iter().filter(|entry| entry.name.ends_with(".wal"));
    let newest = segments.max_by(|a, b| a.name.cmp(&b.name));
    Ok(newest.map(|entry| TableFile {
        path: format!("wal/{}", entry.name),
        shard_id: 0,
        len_bytes: entry.len_bytes,
    }))
}

/// Where batches begin in the front half of a segment: its newest has hardly more.
fn batches(segment: &[u8]) -> Vec<usize> {
    let front = &segment[..segment.len() / 2];
    let windows = front.windows(BATCH_MAGIC.len()).enumerate();
    let found = windows.filter(|(_, window)| *window == BATCH_MAGIC);
    found.map(|(at, _)| at).collect()
}

/// The header, and in each of the last batches the header and the middle.
fn places_in_segment(file: &TableFile, batches: &[usize]) -> Vec<Place> {
    let place = |offset: u64| Place {
        file: file.clone(),
        offset,
        bytes: FLIPPED_BYTES,
    };
    let mut places = vec![place(HEADER_AT)];
    let pairs: Vec<&[usize]> = batches.windows(2).collect();
    for pair in pairs.iter().rev().take(BATCHES_MAX) {
        let (begin, end) = (pair[0] as u64, pair[1] as u64);
        places.push(place(begin + BATCH_MAGIC.len() as u64));
        places.push(place(begin + (end - begin) / 2));
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_lie_in_the_header_and_in_the_last_batches_of_the_front() {
        let mut segment = vec![0; 64 << 10];
        for at in [4_096, 8_192, 9_000, 12_288, 60_000] {
            segment[at..at + 8].copy_from_slice(BATCH_MAGIC);
        }
        let found = batches(&segment);
        assert_eq!(
            found,
            [4_096, 8_192, 9_000, 12_288],
            "not what comes from the end"
        );
        let file = TableFile {
            path: "wal/00000001.wal".to_owned(),
            shard_id: 0,
            len_bytes: segment.len() as u64,
        };
        let offsets = |batches: &[usize]| -> Vec<u64> {
            let places = places_in_segment(&file, batches);
            places.iter().map(|place| place.offset).collect()
        };
        assert_eq!(offsets(&found), [12, 9_008, 10_644, 8_200, 8_596, 4_104, 6_144]);
        assert_eq!(offsets(&[]), [12], "a segment always has its header");
    }
}
