//! What the library does, fact by fact, so that an upgrade that changes one is noticed.

use lsm_tree::compaction::filter::{CompactionFilter, Context, Factory, ItemAccessor, Verdict};
use lsm_tree::config::CompressionPolicy;
use lsm_tree::{AnyTree, Config};
use tempfile::TempDir;

use super::*;
use crate::disk::{RealDisk, read_file, write_file_atomically};
use crate::storage::TreeId;

struct Library {
    tree: lsm_tree::Tree,
    counter: SequenceNumberCounter,
}

fn open_with(folder: &TempDir, filter: Option<Arc<dyn Factory>>) -> Library {
    let counter = SequenceNumberCounter::default();
    let config = Config::new(folder.path(), counter.clone(), SequenceNumberCounter::default())
        .data_block_compression_policy(CompressionPolicy::disabled())
        .with_compaction_filter_factory(filter);
    match config.open().unwrap() {
        AnyTree::Standard(tree) => Library { tree, counter },
        AnyTree::Blob(_) => panic!("no blob files were asked for"),
    }
}

fn open(folder: &TempDir) -> Library {
    open_with(folder, None)
}

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

impl Library {
    fn put(&self, version: u64, value: &str) {
        let _ = self.tree.insert("k", value, version << STEP_BITS);
    }

    fn get(&self, version: u64) -> Option<String> {
        let value = self.tree.get("k", above(version)).unwrap();
        value.map(|value| String::from_utf8(value.to_vec()).unwrap())
    }

    fn flush(&self, drop_below: SeqNo) {
        self.tree.flush_active_memtable(drop_below).unwrap();
    }
}

#[test]
fn reads_see_numbers_strictly_below_theirs() {
    let folder = folder();
    let library = open(&folder);
    let _ = library.tree.insert("k", "v", 5);
    for flushed in [false, true] {
        assert_eq!(library.tree.get("k", 5).unwrap(), None, "flushed: {flushed}");
        assert!(library.tree.get("k", 6).unwrap().is_some(), "flushed: {flushed}");
        let seen = |at| library.tree.range::<Vec<u8>, _>(.., at, None).count();
        assert_eq!((seen(5), seen(6)), (0, 1), "flushed: {flushed}");
        library.flush(0);
    }
}

#[test]
fn every_flush_and_compaction_takes_a_number_from_the_trees_own_counter() {
    let (folder, other_folder) = (folder(), tempfile::tempdir().unwrap());
    let (library, other) = (open(&folder), open(&other_folder));
    library.put(1, "1");
    assert_eq!(library.counter.get(), 0, "inserts do not advance it");
    library.flush(0);
    assert_eq!(library.counter.get(), 1);
    library.tree.major_compact(TABLE_BYTES_TARGET, 0).unwrap();
    assert_eq!(library.counter.get(), 2);
    assert_eq!(other.counter.get(), 0, "another tree's is its own");
}

#[test]
fn a_read_picks_the_newest_list_numbered_below_it_so_the_counter_must_be_raised() {
    for raised in [false, true] {
        let folder = folder();
        let library = open(&folder);
        library.put(1, "1");
        library.put(2, "2");
        if raised {
            library.counter.fetch_max((2 << STEP_BITS) + 1);
        }
        library.flush(above(1)); // a view at 1 is open; the flush drops version 1 all the same
        let expected = raised.then(|| "1".to_owned());
        assert_eq!(
            library.get(1),
            expected,
            "the older list is picked only if the counter was raised"
        );
        assert_eq!(library.get(2).as_deref(), Some("2"));
    }
}

#[test]
fn older_lists_stay_until_everything_below_their_number_may_go() {
    let folder = folder();
    let library = open(&folder);
    library.counter.fetch_max((2 << STEP_BITS) + 1);
    library.put(1, "1");
    library.put(2, "2");
    library.flush(above(1));
    assert_eq!(library.tree.version_free_list_len(), 1);
    let forget = |number| {
        library
            .tree
            .get_version_history_lock()
            .maintenance(folder.path(), number)
            .unwrap()
    };
    forget(above(1));
    assert_eq!(library.get(1).as_deref(), Some("1"));
    forget(above(2));
    assert_eq!(library.tree.version_free_list_len(), 0);
}

#[test]
fn dropping_at_a_number_loses_the_state_at_it_and_dropping_at_zero_keeps_all() {
    for (drop_below, state_at_1) in [(0, Some("1")), (above(1), None)] {
        let folder = folder();
        let library = open(&folder);
        library.put(1, "1");
        library.put(3, "3");
        library.flush(drop_below);
        drop(library);
        let library = open(&folder); // older lists are gone
        assert_eq!(
            library.get(1).as_deref(),
            state_at_1,
            "dropped below {drop_below}"
        );
        assert_eq!(library.get(3).as_deref(), Some("3"));
    }
}

#[test]
fn get_stops_at_the_first_hit_memtable_first() {
    let folder = folder();
    let library = open(&folder);
    library.put(10, "newer, flushed");
    library.flush(0);
    library.put(5, "older, in the memtable");
    assert_eq!(library.get(20).as_deref(), Some("older, in the memtable"));
}

struct Always(fn() -> Verdict);

impl Factory for Always {
    fn name(&self) -> &str {
        "for version 2, always the same"
    }

    fn make_filter(&self, _: &Context) -> Box<dyn CompactionFilter> {
        Box::new(Always(self.0))
    }
}

impl CompactionFilter for Always {
    fn filter_item(&mut self, item: ItemAccessor<'_>, _: &Context) -> lsm_tree::Result<Verdict> {
        Ok(if &*item.value()? == b"2" {
            (self.0)()
        } else {
            Verdict::Keep
        })
    }
}

#[test]
fn remove_goes_on_hiding_older_versions_and_destroy_brings_them_back() {
    let verdicts: [(fn() -> Verdict, _); 2] = [(|| Verdict::Remove, None), (|| Verdict::Destroy, Some("1"))];
    for (verdict, after) in verdicts {
        let folder = folder();
        let library = open_with(&folder, Some(Arc::new(Always(verdict))));
        library.counter.fetch_max((2 << STEP_BITS) + 1);
        library.put(1, "1");
        library.flush(0);
        library.put(2, "2");
        library.flush(0);
        assert_eq!(library.get(2).as_deref(), Some("2"), "flushes do not filter");
        library.tree.major_compact(TABLE_BYTES_TARGET, above(2)).unwrap();
        assert_eq!(library.get(2).as_deref(), after, "{:?}", verdict());
    }
}

#[test]
fn a_reopened_tree_is_exactly_at_its_last_flush() {
    let folder = folder();
    let library = open(&folder);
    library.put(1, "1");
    library.flush(0);
    library.put(2, "2");
    library.tree.rotate_memtable(); // sealed is not flushed
    library.put(3, "3");
    drop(library);
    let library = open(&folder);
    assert_eq!(library.get(9).as_deref(), Some("1"));
    assert_eq!(library.tree.get_highest_persisted_seqno(), Some(1 << STEP_BITS));
    assert_eq!(
        library.counter.get(),
        0,
        "the counter has to be raised by the caller"
    );
}

#[test]
fn a_table_file_has_the_checksum_that_the_library_lists() {
    let folder = folder();
    let library = open(&folder);
    library.put(1, "1");
    library.flush(0);
    let version = library.tree.current_version();
    let listed: Vec<_> = version
        .iter_tables()
        .map(|table| (table.id(), table.checksum().into_u128()))
        .collect();
    let list = read_file(&RealDisk, &folder.path().join(format!("v{}", version.id()))).unwrap();
    assert_eq!(manifest_file::tables(&list).unwrap(), listed);
    for (table_id, xxh3_128) in listed {
        let name = files::table_name(table_id);
        let survey = survey::survey(&RealDisk, folder.path(), &name, reader::Source::Device).unwrap();
        assert_eq!(survey.sum.xxh3_128, xxh3_128);
        assert!(
            survey.note.is_some(),
            "all its blocks are read without the library"
        );
    }
}

#[test]
fn opening_deletes_what_the_list_does_not_name_and_does_not_verify_the_list() {
    let folder = folder();
    let library = open(&folder);
    library.put(1, "1");
    library.flush(0);
    drop(library);
    let (orphan, old_list) = (folder.path().join("tables/99"), folder.path().join("v99"));
    write_file_atomically(&RealDisk, &orphan, b"evidence").unwrap();
    write_file_atomically(&RealDisk, &old_list, b"evidence").unwrap();
    let list_path = folder.path().join("v1");
    let mut list = read_file(&RealDisk, &list_path).unwrap();
    let release = list
        .windows(7)
        .position(|window| window == b"3.1.10\0" || &window[..6] == b"3.1.10");
    list[release.expect("the library names its release")] ^= 1;
    write_file_atomically(&RealDisk, &list_path, &list).unwrap();
    let id = TreeId {
        shard_id: 1,
        replica_id: 1,
        generation: 1,
    };
    let refused = files::check_folder(&RealDisk, folder.path(), id, None).unwrap_err();
    assert!(refused.sets_tree_aside(), "{refused}");
    let library = open(&folder);
    assert_eq!(library.get(1).as_deref(), Some("1"), "the library did not notice");
    assert!(
        !orphan.exists() && !old_list.exists(),
        "opening heals by deleting"
    );
}

#[test]
fn iterators_go_on_past_a_bad_block_without_its_table_so_that_older_versions_surface() {
    let folder = folder();
    let library = open(&folder);
    for version in 1..=2_u8 {
        for number in 0..2_000_u32 {
            let _ = library
                .tree
                .insert(number.to_be_bytes(), [version; 100], version.into());
        }
        library.flush(0);
    }
    drop(library);
    let newer_table = folder.path().join("tables/1");
    let mut data = read_file(&RealDisk, &newer_table).unwrap();
    data[100_000] ^= 1;
    write_file_atomically(&RealDisk, &newer_table, &data).unwrap();
    let library = open(&folder);
    let (mut right, mut stale, mut errors) = (0, 0, 0);
    for item in library.tree.range::<Vec<u8>, _>(.., SeqNo::MAX, None) {
        match item.into_inner() {
            Ok((_, value)) if value[0] == 2 => right += 1,
            Ok(_) => stale += 1,
            Err(_) => errors += 1,
        }
    }
    assert_eq!(errors, 1);
    assert!(right > 0 && stale > 0, "{right} right, {stale} stale");

    let mut rows_behind = 0;
    let version = library.tree.current_version();
    let table = version.iter_tables().find(|table| table.id() == 1).unwrap();
    let mut items = table.iter();
    let rows_before = items.by_ref().take_while(Result::is_ok).count();
    rows_behind += items.filter(Result::is_ok).count();
    let rows = rows_before + rows_behind;
    assert!(
        rows_behind > 0 && rows < 2_000 && rows > 1_900,
        "one table alone loses just its bad block"
    );
}
