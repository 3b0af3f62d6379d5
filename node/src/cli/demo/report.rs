//! What the demo found, as JSON and as a verdict.

use serde::Serialize;

/// Longest stall that passes, in milliseconds.
pub(super) const STALL_MS_MAX: u64 = 5_000;

/// The outcome of a run; what `--report` writes.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Report {
    /// Seed of the run, to repeat it.
    pub seed: u64,
    /// Writes the cluster acknowledged.
    pub acknowledged_writes: u64,
    /// Keys of which some replica, or a read, does not have the last acknowledged write.
    pub lost_writes: u64,
    /// Reads, live or of a replica, that returned what was not the latest write, or never written.
    pub wrong_reads: u64,
    /// Requests that ended in an error.
    pub failed_requests: u64,
    /// Longest time without an answer from a shard.
    pub longest_stall_ms: u64,
    /// Whether all replicas of every shard had the same digest at the same log index.
    pub digests_equal: bool,
    /// What was done to the nodes.
    pub faults: Vec<Fault>,
    /// Why the verdict is what it is; empty when it is a pass.
    pub failures: Vec<String>,
    /// The verdict.
    pub verdict: Verdict,
}

/// Whether all was well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    Pass,
    #[default]
    Fail,
}

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum FaultKind {
    /// A process was sent SIGKILL. Detected: the cluster reports it; repaired: the cluster is whole again.
    Kill,
    /// Bytes of a store were overwritten. Detected and repaired: as the node itself dates it.
    Overwrite,
    /// Bytes of a store, or of the log, were flipped while the node ran. Detected and repaired: as before.
    Flip,
}

/// One fault.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Fault {
    pub kind: FaultKind,
    /// Name of the node.
    pub node: String,
    /// Process that was killed, or, for an overwrite, the one that had last used the file.
    pub pid: u32,
    /// File below the node's data directory.
    pub file: Option<String>,
    /// First byte overwritten.
    pub offset: Option<u64>,
    /// How many bytes were.
    pub bytes: Option<u64>,
    /// From the fault to its detection, in milliseconds.
    pub detected_ms: Option<u64>,
    /// From the fault to its repair, in milliseconds.
    pub repaired_ms: Option<u64>,
    /// Shard whose replica was damaged.
    #[serde(skip)]
    pub shard_id: u64,
    /// When it was done, milliseconds since 1970.
    #[serde(skip)]
    pub at_ms: u64,
}

impl Fault {
    /// Whether it is in a node's log.
    pub fn is_in_log(&self) -> bool {
        self.file.as_ref().is_some_and(|file| file.starts_with("wal/"))
    }
}

impl Report {
    /// Judges what was counted. A run without a fault of each kind shows nothing and fails.
    pub fn conclude(mut self) -> Self {
        let mut failures = Vec::new();
        let mut none_of = |count: u64, what: &str| {
            if count > 0 {
                failures.push(format!("{count} {what}"));
            }
        };
        none_of(self.lost_writes, "acknowledged writes lost");
        none_of(self.wrong_reads, "wrong reads");
        none_of(self.failed_requests, "failed requests");
        let unnoticed = self
            .faults
            .iter()
            .filter(|fault| fault.detected_ms.is_none())
            .count();
        none_of(unnoticed as u64, "faults not reported by the cluster");
        let open = self
            .faults
            .iter()
            .filter(|fault| fault.repaired_ms.is_none())
            .count();
        none_of(open as u64, "faults not repaired");
        if self.acknowledged_writes == 0 {
            failures.push("nothing was written".to_owned());
        }
        if self.longest_stall_ms > STALL_MS_MAX {
            failures.push(format!(
                "a shard was silent for {} ms, allowed are {STALL_MS_MAX}",
                self.longest_stall_ms
            ));
        }
        if !self.digests_equal {
            failures.push("the replicas' digests differ".to_owned());
        }
        for kind in [FaultKind::Kill, FaultKind::Overwrite] {
            if !self.faults.iter().any(|fault| fault.kind == kind) {
                failures.push(format!("no fault of kind {kind:?} was made"));
            }
        }
        for (in_log, place) in [(false, "store"), (true, "log")] {
            let is_one = |fault: &Fault| fault.kind == FaultKind::Flip && fault.is_in_log() == in_log;
            if !self.faults.iter().any(is_one) {
                failures.push(format!("nothing was flipped in a running node's {place}"));
            }
        }
        self.failures.extend(failures);
        self.verdict = if self.failures.is_empty() {
            Verdict::Pass
        } else {
            Verdict::Fail
        };
        self
    }

    /// For a person, a few lines.
    pub fn lines(&self) -> Vec<String> {
        let or_never = |ms: Option<u64>| ms.map_or("never".to_owned(), |ms| format!("after {ms} ms"));
        let mut lines = vec![format!(
            "{} acknowledged writes: {} lost, {} wrong reads, {} failed requests, longest stall {} ms",
            self.acknowledged_writes,
            self.lost_writes,
            self.wrong_reads,
            self.failed_requests,
            self.longest_stall_ms
        )];
        for fault in &self.faults {
            let what = match (fault.kind, &fault.file) {
                (FaultKind::Overwrite, Some(file)) => format!(
                    "{} bytes of {file} at {} overwritten",
                    fault.bytes.unwrap_or(0),
                    fault.offset.unwrap_or(0)
                ),
                (FaultKind::Flip, Some(file)) => format!(
                    "{} bytes of {file} flipped while it ran",
                    fault.bytes.unwrap_or(0)
                ),
                _ => format!("process {} killed", fault.pid),
            };
            let (detected, repaired) = (or_never(fault.detected_ms), or_never(fault.repaired_ms));
            lines.push(format!(
                "{}: {what}; detected {detected}, repaired {repaired}",
                fault.node
            ));
        }
        match self.verdict {
            Verdict::Pass => lines.push("PASS".to_owned()),
            Verdict::Fail => lines.push(format!("FAIL (seed {}): {}", self.seed, self.failures.join("; "))),
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(kind: FaultKind) -> Fault {
        Fault {
            kind,
            node: "n1".to_owned(),
            pid: 42,
            file: (kind != FaultKind::Kill).then(|| "trees/s2-r1-g1/tables/3".to_owned()),
            offset: Some(4_096),
            bytes: Some(4_096),
            detected_ms: Some(10),
            repaired_ms: Some(20),
            shard_id: 2,
            at_ms: 0,
        }
    }

    fn good() -> Report {
        Report {
            acknowledged_writes: 10,
            longest_stall_ms: STALL_MS_MAX,
            digests_equal: true,
            faults: vec![
                fault(FaultKind::Kill),
                fault(FaultKind::Overwrite),
                fault(FaultKind::Flip),
                Fault {
                    file: Some("wal/00000003.wal".to_owned()),
                    ..fault(FaultKind::Flip)
                },
            ],
            ..Report::default()
        }
    }

    #[test]
    fn a_run_in_which_all_was_well_passes() {
        let report = good().conclude();
        assert_eq!((report.verdict, report.failures.len()), (Verdict::Pass, 0));
        assert_eq!(report.lines().last().unwrap(), "PASS");
    }

    #[test]
    fn each_single_thing_that_is_wrong_fails_and_is_named() {
        type Change = fn(&mut Report);
        let wrong: [(&str, Change); 12] = [
            ("1 acknowledged writes lost", |report| report.lost_writes = 1),
            ("1 wrong reads", |report| report.wrong_reads = 1),
            ("1 failed requests", |report| report.failed_requests = 1),
            ("nothing was written", |report| report.acknowledged_writes = 0),
            ("silent for 5001 ms", |report| report.longest_stall_ms = 5_001),
            ("digests differ", |report| report.digests_equal = false),
            ("not reported", |report| report.faults[1].detected_ms = None),
            ("not repaired", |report| report.faults[0].repaired_ms = None),
            ("no fault of kind Overwrite", |report| {
                drop(report.faults.remove(1))
            }),
            ("running node's store", |report| drop(report.faults.remove(2))),
            ("running node's log", |report| report.faults.truncate(3)),
            ("kept", |report| report.failures.push("kept".to_owned())),
        ];
        for (named, change) in wrong {
            let mut report = good();
            change(&mut report);
            let report = report.conclude();
            assert_eq!(report.verdict, Verdict::Fail, "{named}");
            assert!(
                report.failures.len() == 1 && report.failures[0].contains(named),
                "{:?}",
                report.failures
            );
        }
    }

    #[test]
    fn the_json_has_the_fields_promised() {
        let json = serde_json::to_value(good().conclude()).unwrap();
        assert_eq!(json["verdict"], "pass");
        assert_eq!(json["faults"][1]["kind"], "overwrite");
        assert_eq!(json["faults"][1]["file"], "trees/s2-r1-g1/tables/3");
        let fields = [
            "acknowledged_writes",
            "lost_writes",
            "wrong_reads",
            "failed_requests",
            "longest_stall_ms",
        ];
        assert!(fields.iter().all(|field| json[field].is_u64()));
        let fields = ["node", "pid", "offset", "bytes", "detected_ms", "repaired_ms"];
        assert!(fields.iter().all(|field| !json["faults"][1][field].is_null()));
    }
}
