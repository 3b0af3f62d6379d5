//! Whether there is room on a disk, before anything is started.

use std::path::Path;

use crate::CannotRun;

/// Refuses, in one line, what needs more bytes than are free under a directory of temporary ones; `advice` says what
/// needs less.
pub fn check(what: &str, needed_bytes: u64, directory: &Path, advice: &str) -> Result<(), CannotRun> {
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    let disk = rustix::fs::statvfs(directory)
        .map_err(|error| CannotRun(format!("{}: {error}", directory.display())))?;
    let free_bytes = disk.f_bavail.saturating_mul(disk.f_frsize);
    if needed_bytes <= free_bytes {
        return Ok(());
    }
    Err(CannotRun(format!(
        "too little disk: {what} may need {:.1} GiB and {} has {:.1} GiB free (TMPDIR chooses the directory; {advice})",
        gib(needed_bytes),
        directory.display(),
        gib(free_bytes)
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_disk_is_said_with_what_is_needed() {
        let directory = std::env::temp_dir();
        let check = |bytes| check("this run", bytes, &directory, "fewer keys need less");
        assert!(check(1).is_ok());
        let refused = check(u64::MAX / 2).unwrap_err().to_string();
        assert!(
            refused.contains("too little disk") && refused.contains("TMPDIR"),
            "{refused}"
        );
    }
}
