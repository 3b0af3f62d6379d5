//! What a run was made on and of, so that it can be told from others.

use std::path::Path;

use serde::Serialize;
use tokio::process::Command;

use super::system::Kind;
use super::{etcd, postgres, redis};

#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Start of the run, UTC.
    pub date: String,
    pub host: String,
    pub processor: String,
    pub processors: usize,
    pub memory_bytes: u64,
    pub kernel: String,
    /// Type and source of the file system the systems run on.
    pub filesystem: String,
    /// By system.
    pub versions: Vec<(&'static str, String)>,
    /// Of the sources; with `+` when they were changed since.
    pub commit: String,
    pub command: String,
}

pub async fn describe(directory: &Path, reelkv: &Path, peers: &[Kind]) -> Machine {
    let mut versions = vec![("reelkv", first_line(reelkv, &["--version"]).await)];
    for peer in peers {
        let version = match peer {
            Kind::ReelKv => continue,
            Kind::Etcd => first_line(Path::new(etcd::PROGRAM), &["--version"]).await,
            Kind::Postgres => first_line(&postgres::binary("postgres"), &["--version"]).await,
            Kind::Redis => first_line(Path::new(redis::PROGRAM), &["--version"]).await,
        };
        versions.push((peer.name(), version));
    }
    let cpuinfo = text("/proc/cpuinfo");
    let meminfo = text("/proc/meminfo");
    let memory_kib =
        field(&meminfo, "MemTotal:").and_then(|text| text.split(' ').next()?.parse::<u64>().ok());
    Machine {
        date: first_line(Path::new("date"), &["-u", "+%Y-%m-%dT%H:%M:%SZ"]).await,
        host: text("/proc/sys/kernel/hostname").trim().to_owned(),
        processor: field(&cpuinfo, "model name").map_or_else(
            || "unknown".to_owned(),
            |model| model.trim_start_matches([':', ' ']).to_owned(),
        ),
        processors: std::thread::available_parallelism().map_or(0, usize::from),
        memory_bytes: memory_kib.unwrap_or(0) * 1024,
        kernel: text("/proc/sys/kernel/osrelease").trim().to_owned(),
        filesystem: filesystem(&text("/proc/self/mountinfo"), directory),
        versions,
        commit: commit().await,
        command: std::env::args().collect::<Vec<_>>().join(" "),
    }
}

/// Of the sources this program was built from, if they are still there.
async fn commit() -> String {
    let sources = env!("CARGO_MANIFEST_DIR");
    let head = first_line(Path::new("git"), &["-C", sources, "rev-parse", "HEAD"]).await;
    let changed = first_line(
        Path::new("git"),
        &["-C", sources, "status", "--porcelain", "--untracked-files=no"],
    )
    .await;
    match changed.is_empty() || changed == UNKNOWN {
        true => head,
        false => head + "+",
    }
}

const UNKNOWN: &str = "unknown";

async fn first_line(program: &Path, arguments: &[&str]) -> String {
    match Command::new(program)
        .args(arguments)
        .kill_on_drop(true)
        .output()
        .await
    {
        Ok(output) if output.status.success() => {
            let said = String::from_utf8_lossy(&output.stdout);
            said.lines().next().unwrap_or_default().trim().to_owned()
        }
        _ => UNKNOWN.to_owned(),
    }
}

fn text(path: &str) -> String {
    #[allow(clippy::disallowed_methods)] // the kernel's figures, no data of ours
    let bytes = std::fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines()
        .find_map(|line| line.strip_prefix(name))
        .map(str::trim)
}

/// Of the mount with the longest path that holds `directory`.
fn filesystem(mountinfo: &str, directory: &Path) -> String {
    let mounts = mountinfo.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mounted_at = before.split(' ').nth(4)?;
        let mut after = after.split(' ');
        let (kind, source) = (after.next()?, after.next()?);
        directory
            .starts_with(mounted_at)
            .then(|| (mounted_at.len(), format!("{kind} on {source}")))
    });
    mounts
        .max()
        .map_or_else(|| UNKNOWN.to_owned(), |(_, found)| found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_system_is_that_of_the_nearest_mount() {
        let mounts = "1 0 8:1 / / rw - ext4 /dev/vda rw\n2 1 0:5 / /tmp rw shared:3 - tmpfs tmpfs rw\n";
        assert_eq!(filesystem(mounts, Path::new("/tmp/x")), "tmpfs on tmpfs");
        assert_eq!(filesystem(mounts, Path::new("/tmpfile")), "ext4 on /dev/vda");
        assert_eq!(filesystem("", Path::new("/")), UNKNOWN);
    }
}
