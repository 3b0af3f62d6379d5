//! Files and records that are not what was written: noticed, or without effect; never believed.

use std::collections::BTreeMap;

use super::*;
use crate::storage::BadSpan;

pub(super) const KEYS: u32 = 3_000;

pub(super) type Contents = BTreeMap<String, String>;

pub(super) fn key(number: u32) -> String {
    format!("key{number:05}")
}

/// Writes every `step`th key in entries of 100, and remembers it.
pub(super) fn write(tree: &Tree, step: usize, round: u32, contents: &mut Contents) {
    let keys: Vec<String> = (0..KEYS).step_by(step).map(key).collect();
    for chunk in keys.chunks(100) {
        let value = format!("{round}-{}", "v".repeat(100));
        let effects: Vec<_> = chunk
            .iter()
            .map(|key| (key.as_str(), Some(value.as_str())))
            .collect();
        apply(tree, &effects);
        contents.extend(chunk.iter().map(|key| (key.clone(), value.clone())));
    }
}

/// A tree with several tables, some compacted.
pub(super) async fn filled(bench: &Bench) -> (Tree, Mark, Contents) {
    let tree = bench.storage.create(ID).await.unwrap();
    let mut contents = Contents::new();
    write(&tree, 1, 0, &mut contents);
    checkpoint(&tree, 1).await;
    tree.compact_fully().await.unwrap();
    write(&tree, 2, 1, &mut contents);
    checkpoint(&tree, 2).await;
    write(&tree, 7, 2, &mut contents);
    let mark = checkpoint(&tree, 3).await;
    (tree, mark, contents)
}

#[derive(Debug)]
enum Damage {
    Flip(usize),
    Zero(usize),
    Truncate(usize),
    Remove,
}

impl Damage {
    fn of(len: usize) -> Vec<Self> {
        let mut all = vec![
            Self::Remove,
            Self::Truncate(0),
            Self::Truncate(len - 1),
            Self::Truncate(len / 2),
        ];
        let places = [
            0,
            8,
            24,
            len / 7,
            len / 3,
            len / 2,
            len * 2 / 3,
            len.saturating_sub(40),
            len - 1,
        ];
        for place in places.into_iter().filter(|place| *place < len) {
            all.push(Self::Flip(place));
            all.push(Self::Zero(place / 4_096 * 4_096));
        }
        all
    }

    fn inflict(&self, path: &Path) {
        let mut data = std::fs::read(path).unwrap();
        match *self {
            Self::Remove => return std::fs::remove_file(path).unwrap(),
            Self::Truncate(len) => data.truncate(len),
            Self::Flip(at) => data[at] ^= 0x04,
            Self::Zero(at) => {
                let end = data.len().min(at + 4_096);
                data[at..end].fill(0);
            }
        }
        std::fs::write(path, data).unwrap();
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path))
        } else {
            found.push(path)
        }
    }
    found.sort();
    found
}

/// Every answer is right or none. Returns whether all were right.
pub(super) fn answers_hold(tree: &Tree, contents: &Contents) -> bool {
    let view = tree.view();
    let mut all_right = true;
    for (key, expected) in contents {
        match view.get(key.as_bytes()) {
            Lookup::Value(record) => assert_eq!(record.value.as_deref(), Some(expected.as_bytes()), "{key}"),
            Lookup::Unproven(_) => all_right = false,
            Lookup::Absent { .. } => panic!("{key} is said to be absent"),
        }
    }
    let mut start = Bytes::new();
    let mut scanned = 0;
    loop {
        let Ok(page) = view.scan(&start, b"", 500, usize::MAX) else {
            return false; // nothing is said about the page and what follows
        };
        for record in page.records {
            let key = std::str::from_utf8(&record.key).unwrap();
            assert_eq!(
                record.value.as_deref(),
                contents.get(key).map(String::as_bytes),
                "{key}"
            );
            scanned += 1;
        }
        match page.resume {
            Some(resume) => start = resume,
            None => break,
        }
    }
    assert_eq!(scanned, contents.len(), "a scan left out keys");
    all_right
}

/// What a stopped tree with a damaged file comes to: refused, or whole again.
async fn a_stopped_tree_with_a_damaged_file_is_refused_or_made_whole(engine: EngineKind) {
    let bench = Bench::new(engine);
    let (tree, mark, contents) = filled(&bench).await;
    tree.close().await.unwrap();
    let name = |path: &Path| {
        let below = path.strip_prefix(bench.folder()).unwrap();
        below.to_string_lossy().into_owned()
    };
    let listed =
        |path: &Path| engine != EngineKind::Lsm || mark.files.iter().any(|file| file.name == name(path));
    let (mut refused, mut healed) = (0, 0);
    for path in files(&bench.folder()).into_iter().filter(|path| listed(path)) {
        let len = std::fs::metadata(&path).unwrap().len() as usize;
        for damage in Damage::of(len) {
            let before = std::fs::read(&path).unwrap();
            damage.inflict(&path);
            let unchanged = std::fs::read(&path).is_ok_and(|after| after == before);
            // (sled's proof of a clean stop is taken away when it holds, so there is no second look.)
            if !unchanged {
                match bench.reopen(Some(&mark)).await {
                    Ok(opened) => {
                        let put_back: Vec<_> = mark.contents.iter().map(|file| &*file.name).collect();
                        assert!(
                            put_back.contains(&&*name(&path)),
                            "{damage:?} of {path:?} went unnoticed"
                        );
                        assert_eq!(opened.healed.len(), 1, "it is told: {:?}", opened.healed);
                        assert_eq!(opened.applied, mark.applied);
                        assert!(answers_hold(&opened.tree, &contents));
                        assert_eq!(std::fs::read(&path).unwrap(), before);
                        opened.tree.close().await.unwrap();
                        healed += 1;
                    }
                    Err(error) => {
                        assert!(
                            error.sets_tree_aside(),
                            "{damage:?} of {}: {error}",
                            path.display()
                        );
                        refused += 1;
                    }
                }
            }
            std::fs::write(&path, before).unwrap();
        }
    }
    assert!(refused > 30, "{refused} cases");
    let small = if engine == EngineKind::Lsm { 30 } else { 0 };
    assert!(healed >= small, "{healed} healed");
    let opened = bench.reopen(Some(&mark)).await.expect("the undamaged tree opens");
    assert_eq!(opened.healed, []);
}

#[tokio::test]
async fn a_stopped_lsm_tree_with_a_damaged_file_is_refused_or_made_whole() {
    a_stopped_tree_with_a_damaged_file_is_refused_or_made_whole(EngineKind::Lsm).await;
}

#[tokio::test]
async fn a_stopped_sled_tree_with_a_damaged_file_is_refused() {
    a_stopped_tree_with_a_damaged_file_is_refused_or_made_whole(EngineKind::Sled).await;
}

/// A table goes bad under an open tree, which then lives on for ten checkpoints and a reopening.
async fn live_damage(table: usize, place: f64) {
    let mut bench = Bench::new(EngineKind::Lsm);
    let (tree, mark, mut contents) = filled(&bench).await;
    drop(tree); // with the blocks it has in memory
    let tree = bench.reopen(Some(&mark)).await.unwrap().tree;
    let tables: Vec<_> = mark
        .files
        .iter()
        .filter(|file| file.name.starts_with("tables/"))
        .collect();
    let path = bench.folder().join(&tables[table].name);
    let len = tables[table].len as f64;
    Damage::Flip((len * place) as usize).inflict(&path);

    let report = tree.sweep().await.unwrap();
    assert!(!report.bad_files.is_empty(), "a sweep reads every byte");
    let in_a_bad_span = |key: &str| {
        report.bad_spans.iter().any(|BadSpan { after, through, .. }| {
            after.as_deref().is_none_or(|after| after < key.as_bytes())
                && through.as_deref().is_none_or(|through| key.as_bytes() <= through)
        })
    };
    let lost = contents.keys().filter(|key| in_a_bad_span(key)).count();
    assert!(lost < 400, "{lost} keys in {:?}", report.bad_spans);
    assert_eq!(
        report.live.records as usize,
        contents.len() - lost,
        "all others are counted"
    );
    for key in contents.keys().filter(|key| !in_a_bad_span(key)) {
        assert!(
            matches!(tree.view().get(key.as_bytes()), Lookup::Value(_)),
            "{key} is outside {:?}",
            report.bad_spans
        );
    }
    let all_right = answers_hold(&tree, &contents);
    assert!(
        all_right || report.bad_span_count > 0,
        "what cannot be answered is in a bad span: {report:?}"
    );
    let mut last_mark = mark;
    for round in 3..13 {
        write(&tree, 5, round, &mut contents);
        last_mark = checkpoint(&tree, u64::from(round) + 1).await;
        match tree.compact().await {
            Ok(Some(mark)) => last_mark = mark,
            Ok(None) => {}
            Err(error) => assert!(error.sets_tree_aside(), "only the input is bad: {error}"),
        }
        answers_hold(&tree, &contents);
    }
    bench.restart(tree).await;
    match bench.reopen(Some(&last_mark)).await {
        Ok(opened) => assert!(
            answers_hold(&opened.tree, &contents),
            "an accepted tree answers everything"
        ),
        Err(error) => assert!(error.sets_tree_aside(), "{error}"),
    }
}

#[tokio::test]
async fn an_open_tree_with_a_damaged_table_never_answers_wrongly() {
    for table in 0..3 {
        for place in [0.02, 0.3, 0.6, 0.9, 0.97, 0.9999] {
            println!("table {table}, flipped at {place} of its length");
            live_damage(table, place).await;
        }
    }
}

#[tokio::test]
async fn a_damaged_record_is_unproven_and_its_neighbours_are_not() {
    let bench = Bench::new(EngineKind::Memory);
    let tree = bench.storage.create(ID).await.unwrap();
    apply(&tree, &[("a", Some("1")), ("b", Some("2")), ("c", Some("3"))]);
    let mark = checkpoint(&tree, 1).await;
    let damaged = bench.device.damage_record(ID, 1).unwrap();
    assert_eq!(&damaged[..], b"b");
    let mut tree = tree;
    for reopened in [false, true] {
        assert!(matches!(
            tree.view().get(b"b"),
            Lookup::Unproven(TreeError::Damaged { .. })
        ));
        assert_eq!(get(&tree, "a").as_deref(), Some("1"));
        assert!(
            tree.view().scan(b"", b"", 9, 999).is_err(),
            "reopened: {reopened}"
        );
        assert_eq!(tree.view().scan(b"c", b"", 9, 999).unwrap().records.len(), 1);
        assert!(tree.view().digest().await.is_err());
        let report = tree.sweep().await.unwrap();
        let [BadSpan { after, through, .. }] = &report.bad_spans[..] else {
            panic!("{report:?}")
        };
        assert_eq!(
            (after.as_deref(), through.as_deref()),
            (Some(&b"a"[..]), Some(&b"b"[..]))
        );
        assert_eq!(report.live.records, 2);
        bench.device.crash();
        drop(tree);
        tree = bench.reopen(Some(&mark)).await.unwrap().tree;
    }
    apply(&tree, &[("b", Some("4"))]);
    assert_eq!(
        get(&tree, "b").as_deref(),
        Some("4"),
        "a newer version does not need the damaged one"
    );
}
