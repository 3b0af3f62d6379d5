//! Reading a whole tree to see what is wrong with it.

use std::ops::ControlFlow;

use bytes::Bytes;

use super::TreeError;
use super::tree::Tree;
use super::view::Digest;

/// Bad spans and files reported in detail; further ones are only counted.
const REPORTED_MAX: usize = 1_024;

/// Keys about which nothing is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadSpan {
    /// The last good key before the span; `None` when it begins with the tree.
    pub after: Option<Bytes>,
    /// The first good key behind the span; `None` when it reaches to the tree's end.
    pub before: Option<Bytes>,
    /// What was found.
    pub error: TreeError,
}

/// What a sweep found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SweepReport {
    /// The version that was read.
    pub version: u64,
    /// Sum over the live records that could be read.
    pub live: Digest,
    /// Deleted records still stored.
    pub deleted: u64,
    /// Bytes of files read from the device.
    pub file_bytes: u64,
    /// Files whose bytes are not what was written.
    pub bad_files: Vec<TreeError>,
    /// Spans whose records cannot be believed, in key order.
    pub bad_spans: Vec<BadSpan>,
    /// Bad spans found, including those not listed.
    pub bad_span_count: u64,
}

impl SweepReport {
    /// Whether everything was read and is right.
    pub fn is_clean(&self) -> bool {
        self.bad_files.is_empty() && self.bad_span_count == 0
    }

    fn add_bad(&mut self, after: Option<Bytes>, error: TreeError) {
        self.bad_span_count += 1;
        if self.bad_spans.len() < REPORTED_MAX {
            self.bad_spans.push(BadSpan {
                after,
                before: None,
                error,
            });
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

    fn sweep_now(&self) -> Result<SweepReport, TreeError> {
        let inner = &self.inner;
        let (file_bytes, mut bad_files) = inner.guard("verifying files", || inner.engine.verify_files())?;
        bad_files.truncate(REPORTED_MAX);
        let view = self.view();
        let mut report = SweepReport {
            version: view.version(),
            file_bytes,
            bad_files,
            ..SweepReport::default()
        };
        let mut last_good: Option<Bytes> = None;
        let mut open_spans = 0; // bad spans since the last good key
        let visited = view.visit(&[], &[], &mut |record| {
            match record {
                Ok(record) => {
                    for span in report.bad_spans.iter_mut().rev().take(open_spans) {
                        span.before = Some(record.key.clone());
                    }
                    open_spans = 0;
                    last_good = Some(record.key.clone());
                    match record.value {
                        Some(_) => report.live.add(&record),
                        None => report.deleted += 1,
                    }
                }
                Err(error) => {
                    let listed = report.bad_spans.len();
                    report.add_bad(last_good.clone(), error);
                    open_spans += report.bad_spans.len() - listed;
                }
            }
            Ok(ControlFlow::Continue(()))
        });
        if let Err(error) = visited {
            report.add_bad(last_good, error);
        }
        Ok(report)
    }
}
