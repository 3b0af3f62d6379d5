//! Power cuts on real file systems: what was checkpointed is there, whole, and nothing else is believed.
//!
//! A file system on a loop device is shut down without flushing its log (what a power cut leaves),
//! mounted again, and the trees on it are opened with the last mark that was returned before. Needs root.
#![allow(clippy::disallowed_methods)] // a test of the real thing

use std::collections::BTreeMap;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use reelkv::disk::RealDisk;
use reelkv::shard::LogId;
use reelkv::storage::{
    EngineKind, Lookup, Mark, Opened, Storage, StorageConfig, StoredRecord, Tree, TreeError, TreeId,
};

const ID: TreeId = TreeId {
    shard_id: 1,
    replica_id: 1,
    generation: 1,
};
const KEYS: u64 = 2_000;
const ENTRY_EFFECTS: u64 = 20;
const IMAGE_BYTES: u64 = 400 << 20;

/// A file system of its own, whose power can be cut. Unmounted and detached when dropped.
struct LoopFs {
    dir: tempfile::TempDir,
    kind: &'static str,
    device: String,
    mounted: bool,
}

fn run(command: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(command).args(arguments).output();
    let output = output.map_err(|error| format!("{command}: {error}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    } else {
        let message = String::from_utf8_lossy(&output.stderr);
        Err(format!("{command} {arguments:?}: {message}"))
    }
}

impl LoopFs {
    fn new(kind: &'static str) -> Result<Self, String> {
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        let image = dir.path().join("image");
        let file = std::fs::File::create(&image).map_err(|error| error.to_string())?;
        file.set_len(IMAGE_BYTES).map_err(|error| error.to_string())?;
        run(&format!("mkfs.{kind}"), &["-q", &image.to_string_lossy()])?;
        std::fs::create_dir(dir.path().join("mnt")).map_err(|error| error.to_string())?;
        let device = run("losetup", &["--find", "--show", &image.to_string_lossy()])?;
        let mut fs = Self {
            dir,
            kind,
            device,
            mounted: false,
        };
        fs.mount()?;
        Ok(fs)
    }

    fn mount_point(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    fn mount(&mut self) -> Result<(), String> {
        let mount_point = self.mount_point();
        run(
            "mount",
            &["-t", self.kind, &self.device, &mount_point.to_string_lossy()],
        )?;
        self.mounted = true;
        Ok(())
    }

    /// Nothing that was not synced reaches the device any more; every later write fails.
    fn cut_power(&self) {
        const FS_IOC_GOINGDOWN: libc::Ioctl = 0x8004_587d_u32 as libc::Ioctl;
        let log_not_flushed: u32 = 2;
        let dir = std::fs::File::open(self.mount_point()).unwrap();
        // SAFETY: the call reads one u32, which outlives it.
        #[allow(unsafe_code)]
        let result = unsafe { libc::ioctl(dir.as_raw_fd(), FS_IOC_GOINGDOWN, &raw const log_not_flushed) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    }

    /// After a cut, and after everything open on it was closed.
    fn restore_power(&mut self) {
        run("umount", &[&self.mount_point().to_string_lossy()]).unwrap();
        self.mounted = false;
        self.mount().unwrap();
    }
}

impl Drop for LoopFs {
    fn drop(&mut self) {
        if self.mounted {
            let _ = run("umount", &["--lazy", &self.mount_point().to_string_lossy()]);
        }
        let _ = run("losetup", &["--detach", &self.device]);
    }
}

/// Says on the real standard error that a test did not run; panics if it was required to.
fn skip(test: &str, tool: &str, reason: &str) {
    let required = std::env::var("REELKV_REQUIRE").unwrap_or_default();
    assert!(
        !required.split(',').any(|name| name == tool),
        "{test} needs {tool}: {reason}"
    );
    if let Ok(mut stderr) = std::fs::OpenOptions::new().append(true).open("/dev/stderr") {
        let _ = writeln!(stderr, "SKIPPED {test}: {reason}");
    }
}

fn file_system(test: &str, kind: &'static str) -> Option<LoopFs> {
    if !rustix::process::geteuid().is_root() {
        skip(test, "root", "mounting needs root");
        return None;
    }
    if kind == "xfs" && run("mkfs.xfs", &["-V"]).is_err() {
        skip(test, "xfsprogs", "mkfs.xfs is not installed");
        return None;
    }
    LoopFs::new(kind)
        .inspect_err(|error| skip(test, "root", error))
        .ok()
}

/// Everything a version writes follows from its number.
fn record(version: u64) -> StoredRecord {
    let key = version.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
    let value = format!("value of {version} {}", "x".repeat(version as usize % 400));
    StoredRecord {
        key: Bytes::from(format!("key{:05}", key % KEYS)),
        version,
        value: (!version.is_multiple_of(7)).then(|| Bytes::from(value)),
        client_crc: version as u32,
        logged_time_ms: version,
        expires_at_ms: 0,
    }
}

/// The newest record of every key at a version.
fn contents(version: u64) -> BTreeMap<Bytes, StoredRecord> {
    let records = (1..=version).map(record);
    records.map(|record| (record.key.clone(), record)).collect()
}

fn apply(tree: &Tree) -> Result<(), TreeError> {
    let first = tree.visible() + 1;
    let last = first + ENTRY_EFFECTS - 1;
    tree.begin_entry(last);
    for version in first..=last {
        tree.insert(&record(version))?;
    }
    tree.publish(last);
    Ok(())
}

async fn checkpoint(tree: &Tree) -> Result<Mark, TreeError> {
    let applied = LogId::new(1, tree.visible() / ENTRY_EFFECTS);
    let sealed = tree.seal(b"control", applied)?;
    tree.flush(sealed).await
}

/// Overwrites, checkpoints and compacts until the power goes; notes every mark, as the WAL would.
async fn overwrite(tree: Tree, recorded: Arc<Mutex<Option<Mark>>>, power_gone: Arc<AtomicBool>) {
    while !power_gone.load(Ordering::Acquire) {
        for _ in 0..25 {
            if apply(&tree).is_err() {
                return;
            }
            tokio::task::yield_now().await;
        }
        let Ok(mark) = checkpoint(&tree).await else { return };
        *recorded.lock() = Some(mark);
        match tree.compact().await {
            Ok(Some(mark)) => *recorded.lock() = Some(mark),
            Ok(None) => {}
            Err(_) => return,
        }
    }
}

fn storage(dir: &Path, engine: EngineKind) -> Arc<Storage> {
    let config = StorageConfig {
        engine,
        ..StorageConfig::default()
    };
    Storage::new(Arc::new(RealDisk), dir.to_owned(), config).unwrap()
}

/// The tree is exactly at a checkpoint: the recorded one, or one just after it.
async fn assert_exact(opened: &Opened, recorded: Option<&Mark>) {
    let tree = &opened.tree;
    assert_eq!(opened.applied.index, tree.visible() / ENTRY_EFFECTS);
    assert!(recorded.is_none_or(|mark| opened.applied >= mark.applied));
    let report = tree.sweep().await.unwrap();
    assert!(report.is_clean(), "{report:?}");
    let (view, expected) = (tree.view(), contents(tree.visible()));
    for (key, record) in &expected {
        match view.get(key) {
            Lookup::Value(found) => assert_eq!(&found, record),
            Lookup::Absent { .. } => assert_eq!(record.value, None, "{key:?} was lost"),
            Lookup::Unproven(error) => panic!("{key:?}: {error}"),
        }
    }
    let live = expected.values().filter(|record| record.value.is_some()).count();
    assert_eq!(report.live.records as usize, live);
}

async fn right_after_a_checkpoint(fs: &mut LoopFs) {
    let root = fs.mount_point().join("trees");
    let mark = {
        let tree = storage(&root, EngineKind::Lsm).create(ID).await.unwrap();
        for _ in 0..100 {
            apply(&tree).unwrap();
        }
        std::fs::write(fs.mount_point().join("unsynced"), "x".repeat(10_000)).unwrap();
        let mark = checkpoint(&tree).await.unwrap();
        fs.cut_power();
        mark
    };
    fs.restore_power();
    let unsynced = std::fs::read(fs.mount_point().join("unsynced")).unwrap_or_default();
    assert!(
        unsynced.iter().all(|byte| *byte == 0),
        "the cut takes what was not synced"
    );
    let opened = storage(&root, EngineKind::Lsm)
        .open(ID, Some(&mark))
        .await
        .unwrap();
    assert_eq!(
        (opened.applied, opened.newer_than_mark),
        (LogId::new(1, 100), false)
    );
    assert_exact(&opened, Some(&mark)).await;
}

/// Runs trees of as many nodes until the power of all goes at once. Returns the marks recorded by then.
async fn run_until_power_cut(
    fs: &LoopFs,
    engine: EngineKind,
    nodes: &[PathBuf],
    after: Duration,
) -> Vec<Option<Mark>> {
    let power_gone = Arc::new(AtomicBool::new(false));
    let mut running = Vec::new();
    for node in nodes {
        let storage = storage(node, engine);
        let tree = storage.create(ID).await.unwrap();
        let recorded = Arc::new(Mutex::new(None));
        let task = tokio::spawn(overwrite(tree, recorded.clone(), power_gone.clone()));
        running.push((storage, task, recorded));
    }
    tokio::time::sleep(after).await;
    // What is recorded now was on the disk before; what is returned later may not have been.
    let marks = running.iter().map(|(_, _, recorded)| recorded.lock().clone());
    let marks = marks.collect();
    fs.cut_power();
    power_gone.store(true, Ordering::Release);
    for (storage, task, _) in running {
        task.await
            .expect("an engine without a disk does not take the node down");
        drop(storage);
    }
    marks
}

async fn while_writing(fs: &mut LoopFs, round: u64, node_count: u64) {
    let node = |node| {
        fs.mount_point()
            .join(format!("round{round}-of{node_count}-node{node}"))
    };
    let nodes: Vec<PathBuf> = (0..node_count).map(node).collect();
    let after = Duration::from_millis(250 + 173 * round);
    let marks = run_until_power_cut(fs, EngineKind::Lsm, &nodes, after).await;
    fs.restore_power();
    for (node, mark) in nodes.iter().zip(&marks) {
        let opened = storage(node, EngineKind::Lsm)
            .open(ID, mark.as_ref())
            .await
            .unwrap();
        println!(
            "{} node of {node_count}: recorded {:?}, found {} with {} versions",
            fs.kind,
            mark.as_ref().map(|mark| mark.applied.index),
            opened.applied,
            opened.tree.visible()
        );
        assert_exact(&opened, mark.as_ref()).await;
        apply(&opened.tree).unwrap();
        checkpoint(&opened.tree).await.unwrap(); // it goes on from there
    }
}

async fn the_default_engine_keeps_exactly_its_last_checkpoint(test: &str, kind: &'static str) {
    let Some(mut fs) = file_system(test, kind) else {
        return;
    };
    right_after_a_checkpoint(&mut fs).await;
    for round in 0..3 {
        while_writing(&mut fs, round, 1).await;
        while_writing(&mut fs, round, 3).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ext4_keeps_exactly_the_last_checkpoint() {
    let test = "ext4_keeps_exactly_the_last_checkpoint";
    the_default_engine_keeps_exactly_its_last_checkpoint(test, "ext4").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn xfs_keeps_exactly_the_last_checkpoint() {
    let test = "xfs_keeps_exactly_the_last_checkpoint";
    the_default_engine_keeps_exactly_its_last_checkpoint(test, "xfs").await;
}

/// Bytes of all files below a folder, and how many of them are not zero.
fn bytes_below(folder: &Path) -> (usize, usize) {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return (0, 0);
    };
    entries
        .filter_map(Result::ok)
        .fold((0, 0), |(all, written), entry| {
            let below = if entry.path().is_dir() {
                bytes_below(&entry.path())
            } else {
                let data = std::fs::read(entry.path()).unwrap_or_default();
                (data.len(), data.iter().filter(|byte| **byte != 0).count())
            };
            (all + below.0, written + below.1)
        })
}

#[tokio::test(flavor = "multi_thread")]
async fn sled_is_not_believed_after_a_power_cut() {
    let Some(mut fs) = file_system("sled_is_not_believed_after_a_power_cut", "ext4") else {
        return;
    };
    let node = |node| fs.mount_point().join(format!("node{node}"));
    let nodes: Vec<PathBuf> = (0..3).map(node).collect();
    let marks = run_until_power_cut(&fs, EngineKind::Sled, &nodes, Duration::from_millis(700)).await;
    fs.restore_power();
    for (node, mark) in nodes.iter().zip(&marks) {
        let (len, written) = bytes_below(&node.join(ID.to_string()));
        let opened = storage(node, EngineKind::Sled).open(ID, mark.as_ref()).await;
        let refused = opened.unwrap_err();
        println!(
            "sled: flushed checkpoint {:?}; its files now hold {len} bytes, {written} of them not zero; {refused}",
            mark.as_ref().map(|mark| mark.applied.index)
        );
        assert!(refused.sets_tree_aside(), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cleanly_stopped_sled_tree_survives_a_power_cut_or_is_refused() {
    let test = "a_cleanly_stopped_sled_tree_survives_a_power_cut_or_is_refused";
    let Some(mut fs) = file_system(test, "ext4") else {
        return;
    };
    let root = fs.mount_point().join("trees");
    let mark = {
        let tree = storage(&root, EngineKind::Sled).create(ID).await.unwrap();
        for _ in 0..100 {
            apply(&tree).unwrap();
        }
        let mark = checkpoint(&tree).await.unwrap();
        tree.close().await.unwrap();
        fs.cut_power();
        mark
    };
    fs.restore_power();
    match storage(&root, EngineKind::Sled).open(ID, Some(&mark)).await {
        Ok(opened) => assert_exact(&opened, Some(&mark)).await,
        Err(error) => {
            println!("sled after a clean stop: {error}");
            assert!(error.sets_tree_aside(), "{error}");
        }
    }
}
