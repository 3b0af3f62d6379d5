//! What processes have used of the machine, from /proc.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;

/// Of one process, or summed over several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time since the start, in user and kernel, with that of its children that have ended.
    pub cpu: Duration,
    /// Memory it holds now. Pages that processes share count once for each.
    pub rss_bytes: u64,
}

impl Usage {
    /// Of a process that runs.
    pub fn of(pid: u32) -> anyhow::Result<Self> {
        let read = |name: &str| read(&Path::new("/proc").join(pid.to_string()).join(name));
        let (cpu_ticks, rss_pages) =
            parse_stat(&read("stat")?).context("/proc/<pid>/stat is not as expected")?;
        let ticks_per_second = rustix::param::clock_ticks_per_second().max(1);
        Ok(Self {
            cpu: Duration::from_secs_f64(cpu_ticks as f64 / ticks_per_second as f64),
            rss_bytes: rss_pages * rustix::param::page_size() as u64,
        })
    }

    /// Over processes that all run.
    pub fn sum(pids: &[u32]) -> anyhow::Result<Self> {
        let mut sum = Self::default();
        for pid in pids {
            sum = sum.plus(Self::of(*pid).with_context(|| format!("usage of process {pid}"))?);
        }
        Ok(sum)
    }

    /// Over processes that all run, and whatever they have started.
    pub fn of_trees(roots: &[u32]) -> anyhow::Result<Self> {
        let mut sum = Self::sum(roots)?;
        for pid in with_descendants(roots)?
            .into_iter()
            .filter(|pid| !roots.contains(pid))
        {
            // One that ended meanwhile is in its parent's figures.
            if let Ok(usage) = Self::of(pid) {
                sum = sum.plus(usage);
            }
        }
        Ok(sum)
    }

    pub fn plus(self, other: Self) -> Self {
        Self {
            cpu: self.cpu + other.cpu,
            rss_bytes: self.rss_bytes + other.rss_bytes,
        }
    }

    /// What was used since `earlier`; the memory is that of now.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            cpu: self.cpu.saturating_sub(earlier.cpu),
            rss_bytes: self.rss_bytes,
        }
    }
}

/// The processes, their children, the children of these and so on, as of now.
pub fn with_descendants(roots: &[u32]) -> anyhow::Result<Vec<u32>> {
    let mut parents = Vec::new();
    #[allow(clippy::disallowed_methods)] // the kernel's figures, no data of ours
    for entry in std::fs::read_dir("/proc").context("read /proc")? {
        let Some(pid) = entry?
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        if let Ok(stat) = read(&Path::new("/proc").join(pid.to_string()).join("stat"))
            && let Some(parent) = stat_field(&stat, 4)
        {
            parents.push((pid, parent as u32));
        }
    }
    let mut found = roots.to_vec();
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        let children = parents
            .iter()
            .filter(|(pid, of)| *of == parent && !found.contains(pid));
        let children: Vec<_> = children.map(|(pid, _)| *pid).collect();
        found.extend(children);
        next += 1;
    }
    Ok(found)
}

/// Bytes that were ever written to the block device under a path, by anybody; `None` if it is on none, such as
/// an overlay or a memory file system. (What a process's `io` in /proc counts is no such figure: kernels that cache files in
/// large pieces count a whole piece for each small write.)
pub fn disk_written_bytes(path: &Path) -> Option<u64> {
    use std::os::unix::fs::MetadataExt;

    let device = path.metadata().ok()?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let stat = read(
        &Path::new("/sys/dev/block")
            .join(format!("{major}:{minor}"))
            .join("stat"),
    )
    .ok()?;
    // The seventh figure counts sectors, which are 512 bytes here whatever the device's are.
    Some(stat.split_ascii_whitespace().nth(6)?.parse::<u64>().ok()? * 512)
}

/// Memory a process holds, its share of what it shares with others; 0 once it has ended.
pub fn memory_bytes(pid: u32) -> u64 {
    let rollup = read(&Path::new("/proc").join(pid.to_string()).join("smaps_rollup"));
    let kib = rollup.ok().and_then(|text| field(&text, "Pss:"));
    kib.unwrap_or(0) * 1024
}

fn read(path: &Path) -> anyhow::Result<String> {
    #[allow(clippy::disallowed_methods)] // the kernel's figures, no data of ours
    let bytes = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Ticks of CPU time and pages of resident memory.
fn parse_stat(stat: &str) -> Option<(u64, u64)> {
    // utime, stime, and the same of children that were waited for.
    let cpu = (14..=17).map(|at| stat_field(stat, at)).sum::<Option<u64>>()?;
    Some((cpu, stat_field(stat, 24)?))
}

/// A field by its number in proc(5), which counts from 1.
fn stat_field(stat: &str, number: usize) -> Option<u64> {
    // The name, number 2, is in parentheses and may hold spaces and parentheses itself.
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_ascii_whitespace().nth(number - 3)?.parse().ok()
}

fn field(text: &str, name: &str) -> Option<u64> {
    // `write_bytes:` is also the end of `cancelled_write_bytes:`.
    let line = text.lines().find(|line| line.starts_with(name))?;
    line[name.len()..].split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_whatever_the_name() {
        let stat = "42 (a (b) c) S 1 42 42 0 -1 4194560 9 8 7 6 100 20 3 1 20 0 4 0 99 1000000 250 18446744073709551615";
        assert_eq!(parse_stat(stat), Some((124, 250)));
        assert_eq!(parse_stat("42 (cut) S 1"), None);
    }

    #[test]
    fn a_child_is_found_from_its_parent() {
        let sleep = std::process::Command::new("sleep").arg("60").spawn();
        let mut child = sleep.unwrap();
        let found = with_descendants(&[std::process::id()]);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found.unwrap().contains(&child.id()));
    }

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let io = "rchar: 1\nwrite_bytes: 4096\ncancelled_write_bytes: 7\n";
        assert_eq!(field(io, "write_bytes:"), Some(4096));
        assert_eq!(field(io, "read_bytes:"), None);
    }

    #[test]
    fn a_busy_process_uses_cpu_and_memory() {
        let pid = std::process::id();
        let before = Usage::of(pid).unwrap();
        let mut sum = 0_u64;
        while Usage::of(pid).unwrap().since(before).cpu.is_zero() {
            sum = (0..100_000).fold(sum, |sum, n| std::hint::black_box(sum ^ n));
        }
        assert!(Usage::of(pid).unwrap().rss_bytes > 0);
        assert!(memory_bytes(pid) > 0);
        assert!(Usage::sum(&[pid, u32::MAX]).is_err());
        assert_eq!(memory_bytes(u32::MAX), 0);
    }
}
