//! What the disk can do by itself, in the directory the systems run in.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

const BLOCK_BYTES: usize = 4096;
/// Of the sequential write.
const CHUNK_BYTES: usize = 1 << 20;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Device {
    /// Appending 4 KiB and fdatasync.
    pub sync_p50_ms: f64,
    pub sync_p99_ms: f64,
    pub syncs: u64,
    /// Million bytes per second, the sync at the end included.
    pub write_mb_per_second: f64,
}

/// Measures for about `each` long, twice. Blocks.
#[allow(clippy::disallowed_methods)] // a scratch file and real time, outside of every simulated world
pub fn measure(directory: &Path, each: Duration) -> anyhow::Result<Device> {
    let path = directory.join("device");
    let create = || std::fs::File::create(&path).with_context(|| format!("create {}", path.display()));
    let mut latencies_us = Histogram::<u64>::new(3)?;
    let mut file = create()?;
    let begun = Instant::now();
    while begun.elapsed() < each {
        let before = Instant::now();
        file.write_all(&[0xa5; BLOCK_BYTES])?;
        file.sync_data()?;
        latencies_us.record(before.elapsed().as_micros().max(1) as u64)?;
    }
    let mut file = create()?;
    let chunk = vec![0x5a; CHUNK_BYTES];
    let mut written = 0;
    let begun = Instant::now();
    while begun.elapsed() < each {
        file.write_all(&chunk)?;
        written += CHUNK_BYTES;
        // Else memory is measured.
        if written % (16 * CHUNK_BYTES) == 0 {
            file.sync_data()?;
        }
    }
    file.sync_data()?;
    let write_mb_per_second = written as f64 / 1e6 / begun.elapsed().as_secs_f64();
    std::fs::remove_file(&path)?;
    let at = |quantile| latencies_us.value_at_quantile(quantile) as f64 / 1e3;
    Ok(Device {
        sync_p50_ms: at(0.5),
        sync_p99_ms: at(0.99),
        syncs: latencies_us.len(),
        write_mb_per_second,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn something_is_measured_and_nothing_left() {
        let directory = tempfile::tempdir().unwrap();
        let device = measure(directory.path(), Duration::from_millis(20)).unwrap();
        assert!(device.syncs > 0 && device.write_mb_per_second > 0.0, "{device:?}");
        assert!(!directory.path().join("device").exists());
    }
}
