//! Random histories against a map of lists.

use std::collections::BTreeMap;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::storage::{Sealed, View};

const STEPS: u32 = 400;
const KEYS: u32 = 24;

/// Every version of every key, and what the last checkpoint was.
#[derive(Clone, Default)]
struct Model {
    versions: BTreeMap<String, Vec<(u64, Option<String>)>>,
    version: u64,
}

impl Model {
    fn at(&self, version: u64) -> BTreeMap<&str, (u64, Option<&str>)> {
        let mut rows = BTreeMap::new();
        for (key, versions) in &self.versions {
            if let Some((at, value)) = versions.iter().rev().find(|(at, _)| *at <= version) {
                rows.insert(key.as_str(), (*at, value.as_deref()));
            }
        }
        rows
    }

    fn cut(&mut self, version: u64) {
        self.version = version;
        for versions in self.versions.values_mut() {
            versions.retain(|(at, _)| *at <= version);
        }
    }
}

struct Run {
    rng: SmallRng,
    bench: Bench,
    tree: Tree,
    model: Model,
    views: Vec<View>,
    sealed: Vec<Sealed>,
    mark: Option<Mark>,
    index: u64,
}

impl Run {
    async fn new(engine: EngineKind, seed: u64) -> Self {
        let bench = Bench::new(engine);
        let tree = bench.storage.create(ID).await.unwrap();
        Self {
            rng: SmallRng::seed_from_u64(seed),
            bench,
            tree,
            model: Model::default(),
            views: Vec::new(),
            sealed: Vec::new(),
            mark: None,
            index: 0,
        }
    }

    async fn step(&mut self) {
        match self.rng.random_range(0..100) {
            0..45 => self.entry(),
            45..55 => self.views.push(self.tree.view()),
            55..65 if !self.views.is_empty() => {
                let victim = self.rng.random_range(0..self.views.len());
                self.views.swap_remove(victim);
            }
            65..72 => self.seal(),
            72..80 => self.flush().await,
            80..85 => self.note(|tree| async move { tree.compact().await }).await,
            85..87 => self.note(|tree| async move { tree.compact_fully().await }).await,
            87..90 => self.stop().await,
            _ => self.check().await,
        }
    }

    fn entry(&mut self) {
        let effects = self.rng.random_range(1..=5);
        self.tree.begin_entry(self.model.version + effects);
        for _ in 0..effects {
            self.model.version += 1;
            let version = self.model.version;
            let key = format!("key{:02}", self.rng.random_range(0..KEYS));
            let value = self
                .rng
                .random_bool(0.75)
                .then(|| format!("{version}-{}", "x".repeat(version as usize % 300)));
            self.tree
                .insert(&record(&key, version, value.as_deref()))
                .unwrap();
            self.model.versions.entry(key).or_default().push((version, value));
        }
        self.tree.publish(self.model.version);
        self.index += 1;
    }

    fn seal(&mut self) {
        let control = self.model.version.to_string();
        self.sealed.push(
            self.tree
                .seal(control.as_bytes(), LogId::new(1, self.index))
                .unwrap(),
        );
    }

    async fn flush(&mut self) {
        if !self.sealed.is_empty() {
            let sealed = self.sealed.remove(0);
            self.mark = Some(self.tree.flush(sealed).await.unwrap());
        }
    }

    async fn note<F: Future<Output = Result<Option<Mark>, TreeError>>>(
        &mut self,
        compact: impl FnOnce(Tree) -> F,
    ) {
        if let Some(mark) = compact(self.tree.clone()).await.unwrap() {
            assert!(
                self.mark
                    .as_ref()
                    .is_none_or(|old| old.version_id < mark.version_id)
            );
            self.mark = Some(mark);
        }
    }

    /// Stops, cleanly or not, and starts from the last checkpoint.
    async fn stop(&mut self) {
        self.views.clear();
        self.sealed.clear();
        if self.bench.engine != EngineKind::Sled && self.rng.random_bool(0.5) {
            self.bench.crash();
        } else {
            self.bench.restart(self.tree.clone()).await;
        }
        let opened = self.bench.reopen(self.mark.as_ref()).await.unwrap();
        assert!(!opened.newer_than_mark);
        let last_version = self.mark.as_ref().map_or(0, |mark| mark.last_version);
        if last_version > 0 {
            assert_eq!(opened.control, last_version.to_string());
        }
        self.tree = opened.tree;
        assert_eq!(self.tree.visible(), last_version);
        self.model.cut(last_version);
        self.check().await;
    }

    async fn check(&mut self) {
        let newest = self.tree.view();
        let floor = self.tree.floor();
        let between = self
            .tree
            .view_at(self.rng.random_range(floor..=self.model.version))
            .unwrap();
        for view in self.views.iter().chain([&newest, &between]) {
            let expected = self.model.at(view.version());
            for key in 0..KEYS {
                let key = format!("key{key:02}");
                let expected = expected
                    .get(key.as_str())
                    .and_then(|(_, value)| value.map(str::to_owned));
                assert_eq!(value(view.get(key.as_bytes())), expected, "{key} in {view:?}");
            }
            let mut page = Page {
                resume: Some(Bytes::new()),
                ..Page::default()
            };
            let mut scanned = Vec::new();
            while let Some(start) = page.resume {
                let (records, bytes) = (self.rng.random_range(1..30), self.rng.random_range(1..2_000));
                page = view.scan(&start, b"", records, bytes).unwrap();
                scanned.extend(page.records.iter().map(|record| {
                    let value = String::from_utf8(record.value.clone().unwrap().to_vec()).unwrap();
                    (
                        String::from_utf8(record.key.to_vec()).unwrap(),
                        record.version,
                        value,
                    )
                }));
            }
            let live = expected.iter().filter_map(|(key, (version, value))| {
                value.map(|value| (key.to_string(), *version, value.to_owned()))
            });
            assert_eq!(scanned, live.collect::<Vec<_>>(), "scan of {view:?}");
        }
        assert!(self.tree.sweep().await.unwrap().is_clean());
    }
}

/// Set `REELKV_SEED` to run one history again.
async fn random_histories_agree_with_a_map(engine: EngineKind) {
    let only = std::env::var("REELKV_SEED")
        .ok()
        .map(|seed| seed.parse().expect("REELKV_SEED is a number"));
    let seeds = only.map_or_else(|| (0..12).collect::<Vec<u64>>(), |seed| vec![seed]);
    for seed in seeds {
        println!("REELKV_SEED={seed} cargo test -p reelkv --lib storage::tests::model::{engine}");
        let mut run = Run::new(engine, seed).await;
        for _ in 0..STEPS {
            run.step().await;
        }
    }
}

#[tokio::test]
async fn lsm() {
    random_histories_agree_with_a_map(EngineKind::Lsm).await;
}

#[tokio::test]
async fn memory() {
    random_histories_agree_with_a_map(EngineKind::Memory).await;
}

#[tokio::test]
async fn sled() {
    random_histories_agree_with_a_map(EngineKind::Sled).await;
}
