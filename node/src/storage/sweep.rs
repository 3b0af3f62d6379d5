//! Reading a whole tree to see what is wrong with it.

use std::ops::ControlFlow;

use bytes::Bytes;

use super::TreeError;
use super::engine::Gap;
use super::tree::Tree;
use super::view::{Digest, View};

/// Bad files and spans reported one by one; the last span reaches over all that follow.
const REPORTED_MAX: usize = 1_024;

/// Keys about which nothing is known: `after < key <= through`. What lies between two spans can be scanned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadSpan {
    /// No key up to this one is concerned; `None` when the span begins with the tree.
    pub after: Option<Bytes>,
    /// The last key that may be concerned; `None` when the span reaches to the tree's end.
    pub through: Option<Bytes>,
    /// What was found.
    pub error: TreeError,
}

impl BadSpan {
    /// The same keys as `[start, end)`; an empty end is none.
    pub fn range(&self) -> (Bytes, Bytes) {
        let behind = |key: &Option<Bytes>| key.as_ref().map(|key| successor(key)).unwrap_or_default();
        (behind(&self.after), behind(&self.through))
    }

    /// Whether a key is in it.
    pub fn holds(&self, key: &[u8]) -> bool {
        let (start, end) = self.range();
        *start <= *key && (end.is_empty() || *key < *end)
    }
}

impl From<Gap> for BadSpan {
    fn from(gap: Gap) -> Self {
        Self {
            after: gap.after,
            through: gap.through,
            error: gap.error,
        }
    }
}

/// What a sweep found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SweepReport {
    /// The version that was read.
    pub version: u64,
    /// Sum over the live records outside bad spans.
    pub live: Digest,
    /// Deleted records still stored, outside bad spans.
    pub deleted: u64,
    /// Bytes of files read from the device.
    pub file_bytes: u64,
    /// Files whose bytes are not what was written.
    pub bad_files: Vec<TreeError>,
    /// Spans whose records cannot be believed, in key order. Together they hold all such keys.
    pub bad_spans: Vec<BadSpan>,
    /// Bad spans found, each counted.
    pub bad_span_count: u64,
}

impl SweepReport {
    /// Whether everything was read and is right.
    pub fn is_clean(&self) -> bool {
        self.bad_files.is_empty() && self.bad_span_count == 0
    }

    fn add_bad(&mut self, after: Option<Bytes>, through: Option<Bytes>, error: TreeError) {
        self.bad_span_count += 1;
        match self.bad_spans.last_mut() {
            Some(last) if self.bad_span_count > REPORTED_MAX as u64 => last.through = through,
            _ => self.bad_spans.push(BadSpan {
                after,
                through,
                error,
            }),
        }
    }
}

impl Tree {
    /// Reads every file from the device and every record through the engine, and verifies both.
    /// Damage is reported, not returned as an error.
    ///
    /// # Errors
    /// The tree is broken or closed.
    pub async fn sweep(&self) -> Result<SweepReport, TreeError> {
        let tree = self.clone();
        self.inner.offload("sweeping", move || tree.sweep_now()).await
    }

    /// Keys of which nothing is known, from the device, in key order; no span touches the next. Gets and
    /// scans of what lies outside are right; inside, an answer is right or an error. What is durable and
    /// was replaced since, in memory, may be told of too.
    ///
    /// # Errors
    /// The tree is broken or closed.
    pub async fn bad_spans(&self) -> Result<Vec<BadSpan>, TreeError> {
        let tree = self.clone();
        let find = move || {
            let inner = &tree.inner;
            let view = tree.view();
            let gaps = inner.guard("looking for gaps", || inner.engine.gaps())?;
            let mut report = SweepReport::default();
            sweep_around(&view, united(gaps), &mut report);
            let found = report.bad_spans.into_iter().map(|span| Gap {
                after: span.after,
                through: span.through,
                error: span.error,
            });
            let spans = united(found.collect()).into_iter().map(BadSpan::from).collect();
            inner.guard("ending a sweep", || Ok(spans))
        };
        self.inner.offload("looking for gaps", find).await
    }

    fn sweep_now(&self) -> Result<SweepReport, TreeError> {
        let inner = &self.inner;
        let (file_bytes, mut bad_files) = inner.guard("verifying files", || inner.engine.verify_files())?;
        bad_files.truncate(REPORTED_MAX);
        let view = self.view();
        let clean = SweepReport {
            version: view.version(),
            file_bytes,
            ..SweepReport::default()
        };
        if bad_files.is_empty() {
            let mut report = clean.clone();
            if sweep_between(&view, None, &[], &mut report).is_ok() {
                return Ok(report);
            }
        }
        let mut report = SweepReport { bad_files, ..clean };
        let gaps = inner.guard("looking for gaps", || inner.engine.gaps())?;
        sweep_around(&view, united(gaps), &mut report);
        inner.guard("ending a sweep", || Ok(report))
    }
}

/// Gaps in key order, none touching the next.
pub(super) fn united(mut gaps: Vec<Gap>) -> Vec<Gap> {
    gaps.sort_by(|a, b| a.after.cmp(&b.after));
    let mut united: Vec<Gap> = Vec::new();
    for gap in gaps {
        match united.last_mut() {
            Some(last) if last.through.is_none() || gap.after < last.through => {
                let reaches_end = last.through.is_none() || gap.through.is_none();
                last.through = if reaches_end {
                    None
                } else {
                    last.through.take().max(gap.through)
                };
            }
            _ => united.push(gap),
        }
    }
    united
}

/// Sweeps what lies between the gaps, and reports these.
fn sweep_around(view: &View, gaps: Vec<Gap>, report: &mut SweepReport) {
    let mut from: Option<Bytes> = None; // the last key of the gap before
    for gap in gaps {
        if let Some(last_good) = &gap.after
            && let Err(error) = sweep_between(view, from.as_ref(), &successor(last_good), report)
        {
            report.add_bad(from, gap.after.clone(), error);
        }
        report.add_bad(gap.after, gap.through.clone(), gap.error);
        match gap.through {
            Some(through) => from = Some(through),
            None => return,
        }
    }
    if let Err(error) = sweep_between(view, from.as_ref(), &[], report) {
        report.add_bad(from, None, error);
    }
}

/// Adds up the records behind `after` and before `end`. A record that is wrong is a span of its
/// own. After an error nothing was added: it is unknown where it lies.
fn sweep_between(
    view: &View,
    after: Option<&Bytes>,
    end: &[u8],
    report: &mut SweepReport,
) -> Result<(), TreeError> {
    let mut sum = report.clone();
    let mut last_good = after.cloned();
    let start = after.map(|after| successor(after)).unwrap_or_default();
    view.visit(&start, end, &mut |key, record| {
        match record {
            Ok(record) if record.value.is_some() => sum.live.add(&record),
            Ok(_) => sum.deleted += 1,
            Err(error) => {
                sum.add_bad(last_good.clone(), Some(key.clone()), error);
                return Ok(ControlFlow::Continue(()));
            }
        }
        last_good = Some(key.clone());
        Ok(ControlFlow::Continue(()))
    })?;
    *report = sum;
    Ok(())
}

/// The first key behind `key`.
fn successor(key: &[u8]) -> Bytes {
    [key, &[0]].concat().into()
}
