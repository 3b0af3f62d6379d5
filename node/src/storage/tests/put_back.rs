//! Small files of a tree that are damaged are put back as the log has them, if nothing else is wrong.

use super::*;

fn flip(path: &Path, at: usize) {
    let mut data = std::fs::read(path).unwrap();
    data[at] ^= 0x04;
    std::fs::write(path, data).unwrap();
}

/// A checkpoint that is on record, and one that is not yet: the power fails between the two.
async fn between_flush_and_record() -> (Bench, Mark, Mark) {
    let bench = Bench::new(EngineKind::Lsm);
    let tree = bench.storage.create(ID).await.unwrap();
    apply(&tree, &[("a", Some("1"))]);
    let recorded = checkpoint(&tree, 1).await;
    apply(&tree, &[("a", Some("2"))]);
    let newer = checkpoint(&tree, 2).await;
    tree.close().await.unwrap();
    (bench, recorded, newer)
}

async fn assert_goes_on_from(bench: &Bench, recorded: &Mark) {
    let opened = bench.reopen(Some(recorded)).await.unwrap();
    assert!(!opened.healed.is_empty(), "it is told");
    assert_eq!(opened.applied, recorded.applied);
    assert!(!opened.newer_than_mark);
    assert_eq!(get(&opened.tree, "a").as_deref(), Some("1"));
    apply(&opened.tree, &[("a", Some("2"))]);
    let again = checkpoint(&opened.tree, 2).await;
    opened.tree.close().await.unwrap();
    let opened = bench.reopen(Some(&again)).await.unwrap();
    assert_eq!(opened.healed, []);
    assert_eq!(get(&opened.tree, "a").as_deref(), Some("2"));
}

#[tokio::test]
async fn a_newer_state_with_a_damaged_pointer_is_given_up_for_the_recorded_one() {
    for at in [0, 7, 8, 20, 24] {
        let (bench, recorded, _) = between_flush_and_record().await;
        flip(&bench.folder().join("current"), at);
        assert_goes_on_from(&bench, &recorded).await;
    }
}

#[tokio::test]
async fn a_newer_state_with_a_damaged_list_or_table_is_given_up_for_the_recorded_one() {
    let (_, recorded, newer) = between_flush_and_record().await;
    let is_new = |name: &&str| recorded.files.iter().all(|file| file.name != *name);
    let names = newer.files.iter().map(|file| file.name.as_str()).filter(is_new);
    let names: Vec<_> = names.collect();
    assert_eq!(names.len(), 2, "its list and its table: {names:?}");
    for name in names {
        let (bench, recorded, _) = between_flush_and_record().await;
        flip(&bench.folder().join(name), 10);
        assert_goes_on_from(&bench, &recorded).await;
    }
}

#[tokio::test]
async fn nothing_is_put_back_while_a_recorded_table_is_not_whole() {
    let (bench, recorded, newer) = between_flush_and_record().await;
    let table = recorded
        .files
        .iter()
        .find(|file| file.name.starts_with("tables/"))
        .unwrap();
    flip(&bench.folder().join("current"), 0);
    flip(&bench.folder().join(&table.name), 100);
    let before = std::fs::read(bench.folder().join("current")).unwrap();
    for mark in [&recorded, &newer] {
        let error = bench.reopen(Some(mark)).await.unwrap_err();
        assert!(error.sets_tree_aside(), "{error}");
    }
    let after = std::fs::read(bench.folder().join("current")).unwrap();
    assert_eq!(after, before, "evidence stays");
}

#[tokio::test]
async fn a_pointer_that_is_older_than_its_mark_is_put_back() {
    let (bench, recorded, newer) = between_flush_and_record().await;
    // The write of both small files was lost: the disk has what it had before.
    for file in &recorded.contents {
        std::fs::write(bench.folder().join(&file.name), &file.bytes).unwrap();
    }
    let opened = bench.reopen(Some(&newer)).await.unwrap();
    assert_eq!(opened.healed.len(), 1);
    assert_eq!(get(&opened.tree, "a").as_deref(), Some("2"));
}
