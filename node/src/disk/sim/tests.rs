use super::*;
use crate::disk::write_file_atomically;

fn path(text: &str) -> PathBuf {
    PathBuf::from(text)
}

/// A disk with `/data/wal/1`, durable but for what the story does next.
fn disk_with_a_log(seed: u64) -> SimDisk {
    let disk = SimDisk::new(seed);
    let mounted = disk.mount();
    mounted.create_dir_all(&path("/data/wal")).unwrap();
    write_file_atomically(&*mounted, &path("/data/wal/1"), b"log").unwrap();
    disk
}

fn names(disk: &SimDisk) -> Vec<PathBuf> {
    disk.files().into_iter().map(|(path, _)| path).collect()
}

#[test]
fn a_directory_that_moved_is_whole_at_its_new_place_once_its_old_parent_is_synced() {
    for seed in 0..20 {
        let disk = disk_with_a_log(seed);
        let mounted = disk.mount();
        // Not synced: it goes with its directory, and may be lost.
        mounted.open(&path("/data/wal/2"), Mode::CreateNew).unwrap();
        mounted.create_dir_all(&path("/data/lost-1")).unwrap();
        mounted
            .rename(&path("/data/wal"), &path("/data/lost-1/wal"))
            .unwrap();
        mounted.sync_dir(&path("/data")).unwrap();
        mounted.create_dir_all(&path("/data/wal")).unwrap();
        write_file_atomically(&*mounted, &path("/data/wal/1"), b"new").unwrap();
        disk.crash(seed);
        let mut names = names(&disk);
        names.retain(|name| *name != path("/data/lost-1/wal/2"));
        assert_eq!(
            names,
            [path("/data/lost-1/wal/1"), path("/data/wal/1")],
            "seed {seed}"
        );
    }
}

#[test]
fn a_move_that_was_not_synced_is_lost_or_kept_as_one() {
    let mut seen = BTreeSet::new();
    for seed in 0..20 {
        let disk = disk_with_a_log(seed);
        write_file_atomically(&*disk.mount(), &path("/data/wal/2"), b"log").unwrap();
        let mounted = disk.mount();
        mounted.rename(&path("/data/wal"), &path("/data/old")).unwrap();
        disk.crash(seed);
        let place = match names(&disk)[..] {
            [ref one, ref two] if one.parent() == two.parent() => one.parent().map(Path::to_owned),
            ref other => panic!("seed {seed}: {other:?}"),
        };
        let place = place.unwrap();
        assert_eq!(disk.mount().list(&place).unwrap().len(), 2, "seed {seed}");
        seen.insert(place);
    }
    assert_eq!(seen, BTreeSet::from([path("/data/old"), path("/data/wal")]));
}
