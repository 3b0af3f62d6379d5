//! An open tree with bad spans goes on answering outside of them, and rightly.

use super::damage::{Contents, KEYS, filled, key};
use super::*;
use crate::storage::{BadSpan, View};

/// Reads the whole tree around its bad spans, as a caller does, and compares.
fn assert_right_outside(view: &View, spans: &[BadSpan], contents: &Contents) {
    let inside = |key: &str| spans.iter().any(|span| span.holds(key.as_bytes()));
    for number in 0..KEYS {
        for key in [key(number), format!("{}+", key(number))] {
            let expected = contents.get(&key);
            match view.get(key.as_bytes()) {
                Lookup::Value(record) => assert_eq!(
                    record.value.as_deref(),
                    expected.map(|value| value.as_bytes()),
                    "{key}"
                ),
                Lookup::Absent { .. } => assert_eq!(expected, None, "{key}"),
                Lookup::Unproven(error) => assert!(inside(&key), "{key} is outside {spans:?}: {error}"),
            }
        }
    }
    let mut start = Bytes::new();
    let mut scanned = Vec::new();
    for span in spans.iter().map(Some).chain([None]) {
        let (end, behind) = span.map(BadSpan::range).unwrap_or_default();
        if span.is_none() || !end.is_empty() {
            let mut from = Some(start);
            while let Some(start) = from {
                let page = view.scan_all_in(&start, &end, 10_000).unwrap();
                scanned.extend(page.records.into_iter().filter(|record| record.value.is_some()));
                from = page.resume;
            }
        }
        if span.is_some() && behind.is_empty() {
            break; // the span reaches to the tree's end
        }
        start = behind;
    }
    let scanned: Vec<_> = scanned
        .iter()
        .map(|record| {
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            (text(&record.key), text(record.value.as_deref().unwrap()))
        })
        .collect();
    let outside = contents.iter().filter(|(key, _)| !inside(key));
    let outside: Vec<_> = outside.map(|(key, value)| (key.clone(), value.clone())).collect();
    assert_eq!(scanned, outside);
}

fn lost(spans: &[BadSpan], contents: &Contents) -> usize {
    let inside = |key: &&String| spans.iter().any(|span| span.holds(key.as_bytes()));
    contents.keys().filter(inside).count()
}

/// Bytes to overwrite in a table, and whether records are among them.
struct Place {
    what: &'static str,
    at: usize,
    bytes: usize,
    holds_records: bool,
}

fn places(mark: &Mark, table: &str) -> Vec<Place> {
    let note = mark.note(table).unwrap();
    let blocks: Vec<usize> = note
        .stretches
        .list
        .iter()
        .map(|block| block.bytes as usize)
        .collect();
    let data: usize = blocks.iter().sum();
    let records: usize = blocks[..2].iter().sum();
    let len = mark.files.iter().find(|file| file.name == table).unwrap().len as usize;
    let place = |what, at, bytes, holds_records| Place {
        what,
        at,
        bytes,
        holds_records,
    };
    vec![
        // The first two blocks hold a copy of the control row, and nothing.
        place("the control row's header", 10, 1, false),
        place("the control row", 200, 1, false),
        place("the first record block's header", records + 10, 1, true),
        place("the first record block", records + 200, 1, true),
        place("a block in the middle", data / 2, 1, true),
        place("a page in the middle", data / 2, 4_096, true),
        place("the last block", data - 50, 1, true),
        place("the index", data + 50, 1, false),
        place("filter and description", data + (len - data) / 2, 16, false),
        place("the directory at the end", len - 30, 8, false),
    ]
}

#[tokio::test]
async fn around_bad_blocks_every_answer_is_right() {
    for warm in [false, true] {
        let bench = Bench::new(EngineKind::Lsm);
        let (tree, mark, contents) = filled(&bench).await;
        drop(tree);
        let tree = bench.reopen(Some(&mark)).await.unwrap().tree;
        if warm {
            assert_right_outside(&tree.view(), &[], &contents);
        }
        for table in mark.tables.iter().map(|table| &*table.name) {
            for place in places(&mark, table) {
                let path = bench.folder().join(table);
                let whole = std::fs::read(&path).unwrap();
                let mut data = whole.clone();
                data[place.at..place.at + place.bytes]
                    .iter_mut()
                    .for_each(|byte| *byte ^= 0x40);
                std::fs::write(&path, data).unwrap();
                let spans = tree.bad_spans().await.unwrap();
                println!("{table}, {}: {} keys", place.what, lost(&spans, &contents));
                assert_eq!(spans.is_empty(), !place.holds_records, "{table}, {}", place.what);
                assert!(lost(&spans, &contents) < 400);
                assert_right_outside(&tree.view(), &spans, &contents);
                std::fs::write(&path, &whole).unwrap();
            }
        }
        assert_eq!(tree.bad_spans().await.unwrap(), []);
    }
}

#[tokio::test]
async fn bad_spans_in_several_tables_are_united() {
    let bench = Bench::new(EngineKind::Lsm);
    let (tree, mark, contents) = filled(&bench).await;
    for table in &mark.tables {
        let path = bench.folder().join(&table.name);
        let mut data = std::fs::read(&path).unwrap();
        let in_blocks: usize = table
            .stretches
            .list
            .iter()
            .map(|block| block.bytes as usize)
            .sum();
        for at in (0..in_blocks).step_by(30_000) {
            data[at] ^= 1;
        }
        std::fs::write(&path, data).unwrap();
    }
    let spans = tree.bad_spans().await.unwrap();
    assert!(spans.len() > 3, "{spans:?}");
    assert!(spans.is_sorted_by(|one, two| one.through.is_some() && one.through <= two.after));
    let lost = lost(&spans, &contents);
    assert!(0 < lost && lost < contents.len() / 2, "{lost} keys");
    assert_right_outside(&tree.view(), &spans, &contents);
}

#[test]
fn a_span_is_a_half_open_range() {
    let span = |after: Option<&'static str>, through: Option<&'static str>| BadSpan {
        after: after.map(|key| Bytes::from_static(key.as_bytes())),
        through: through.map(|key| Bytes::from_static(key.as_bytes())),
        error: TreeError::Closed,
    };
    let range = |after, through| {
        let (start, end) = span(after, through).range();
        (start.to_vec(), end.to_vec())
    };
    assert_eq!(range(Some("b"), Some("d")), (b"b\0".to_vec(), b"d\0".to_vec()));
    assert_eq!(range(None, None), (Vec::new(), Vec::new()));
    let span = span(Some("b"), Some("d"));
    let held: Vec<_> = ["a", "b", "b\0", "c", "d", "d\0", "e"]
        .into_iter()
        .filter(|key| span.holds(key.as_bytes()))
        .collect();
    assert_eq!(held, ["b\0", "c", "d"]);
}
