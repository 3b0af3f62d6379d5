//! The fault matrix from end to end on a handful of cases of each tier, and a judge that can say no.

#![allow(clippy::disallowed_methods)] // files of the test

use std::process::{Command, Output};
use std::time::Duration;

use reelkv::storage::EngineKind;
use reelkv_jepsen::matrix::case::{self, Plan, Role, Sabotage};
use reelkv_jepsen::matrix::fault::{BlockFault, Fault, VICTIM};
use reelkv_jepsen::matrix::report::Results;
use reelkv_jepsen::matrix::world::Pace;
use reelkv_jepsen::matrix::{self, Context, Options, Outcome, Tier, Verdict};

fn options(tier: Tier) -> Options {
    Options {
        tiers: vec![tier],
        engine: EngineKind::Lsm,
        sample: 1.0,
        seed: 2008,
        workers: 2,
        pace: Pace::Virtual,
        random: 200,
        only: None,
    }
}

/// Runs about so many cases of a tier.
fn some(tier: Tier, sample: f64) -> Results {
    judged(Options {
        sample,
        ..options(tier)
    })
}

fn judged(asked: Options) -> Results {
    let results = matrix::run(asked, &|row| {
        eprintln!("{} {}: {}", row.verdict.name(), row.id, row.why)
    });
    let results = results.expect("the matrix runs");
    eprintln!("{}", results.summary());
    assert_eq!(results.totals.r#unsafe, 0, "{}", results.causes());
    results
}

#[test]
fn some_of_every_tier_on_files_are_judged_and_none_is_unsafe() {
    for (tier, sample) in [(Tier::T1, 0.01), (Tier::T1f, 0.04), (Tier::T1d, 0.02)] {
        let results = some(tier, sample);
        let of_tier = results.cases.iter().filter(|row| row.tier == tier).count();
        assert!(
            of_tier >= 3 && of_tier < results.known,
            "{of_tier} of {}",
            results.known
        );
        let noticed = results.cases.iter().filter(|row| row.times.detected_ms.is_some());
        assert!(noticed.count() > 0, "nothing was noticed in {tier:?}");
    }
}

#[test]
fn some_combinations_in_the_simulator_are_judged_and_none_is_unsafe() {
    let results = some(Tier::T4, 0.004);
    for structure in ["log entry", "record"] {
        let of_it = results.cases.iter().filter(|row| row.structure == structure);
        assert!(of_it.count() > 3, "no case of a {structure}");
    }
}

/// All nodes are struck at once, each in places of its own, in every structure of the directories.
#[test]
fn what_is_bad_everywhere_but_never_the_same_is_repaired_by_all_from_all() {
    let results = judged(Options {
        only: Some("T4/helical".to_owned()),
        ..options(Tier::T4)
    });
    assert!(results.held(), "{}{}", results.bars(), results.causes());
    for structure in [
        "tree table",
        "tree control row",
        "wal data frame",
        "wal segment header",
    ] {
        let of_it = results.cases.iter().filter(|row| row.structure == structure);
        assert_eq!(of_it.count(), 4, "cases of a {structure}");
    }
}

#[test]
fn a_case_gives_the_same_verdict_at_the_same_moments_when_it_is_run_alone() {
    let results = some(Tier::T1, 0.003);
    let row = &results.cases[0];
    let alone = Options {
        only: Some(row.id.clone()),
        ..options(Tier::T0)
    };
    let again = matrix::run(alone, &|_| ()).expect("the case runs");
    assert_eq!(again.cases.len(), 1);
    let found = &again.cases[0];
    assert_eq!(
        (found.verdict, found.times, &found.why),
        (row.verdict, row.times, &row.why)
    );
}

#[test]
fn small_files_are_tried_length_by_length() {
    for file in ["identity.1", "directory"] {
        let alone = Options {
            only: Some(format!("T0/every-length-cut/any/{file}")),
            ..options(Tier::T0)
        };
        let results = matrix::run(alone, &|_| ()).expect("the case runs");
        let row = &results.cases[0];
        assert!(row.why.contains("attempts"), "{row:?}");
        assert_ne!(row.verdict, Verdict::Unsafe, "{row:?}");
    }
}

/// The stage for a judge that must say no: a cluster that passes when nothing is done to it.
struct Stage(Context);

impl Stage {
    fn set() -> Self {
        let mut context = Context::prepare(options(Tier::T1), &[Tier::T1]).expect("an image");
        let cases = context.cases(Tier::T1).expect("cases");
        context.measure_unhurt(&cases).expect("an unhurt start");
        Self(context)
    }

    fn judged(&self, fault: &Fault, change: impl Fn(&mut Plan)) -> Outcome {
        let mut plan = self.0.plan_for(fault, Role::Leader, None, 7).expect("a plan");
        change(&mut plan);
        case::run(&plan, &self.0.scratch().path().join("judged"))
    }

    fn verdict_of(&self, sabotage: Sabotage, starts: &str) -> Verdict {
        let outcome = self.judged(&Fault::None, |plan| {
            // Two are enough to serve, once they are sure that the third does not answer.
            if sabotage == Sabotage::LeftOff(vec![2]) {
                plan.unhurt += Duration::from_secs(12);
            }
            plan.sabotage = sabotage.clone();
        });
        assert!(
            outcome.why().starts_with(starts),
            "{sabotage:?}: {}",
            outcome.why()
        );
        outcome.verdict()
    }
}

#[test]
fn the_judge_says_no_to_what_is_wrong_gone_silent_or_left_undone() {
    let stage = Stage::set();
    for (sabotage, verdict, starts) in [
        (Sabotage::None, Verdict::Correct, ""),
        (Sabotage::FalsifiedModel, Verdict::Unsafe, "P1"),
        (Sabotage::LeftOff(vec![0, 2]), Verdict::Unavailable, "P3"),
        (Sabotage::LeftOff(vec![2]), Verdict::Degraded, "P4"),
        (Sabotage::OpenLedgerEntry, Verdict::Degraded, "P4: not repaired"),
    ] {
        let found = stage.verdict_of(sabotage.clone(), starts);
        assert_eq!(found, verdict, "{sabotage:?}");
    }
}

#[test]
fn damage_must_be_told_under_its_name() {
    let stage = Stage::set();
    let files = &stage.0.image().expect("an image").nodes[VICTIM].files;
    let table = files.keys().find(|file| file.contains("/tables/"));
    let fault = Fault::Block {
        file: table.expect("a table").clone(),
        block: 0,
        kind: BlockFault::Zeros,
    };
    let right = stage.judged(&fault, |_| ());
    assert_eq!(right.verdict(), Verdict::Correct, "{}", right.why());
    assert!(right.times.repaired_ms >= right.times.detected_ms);
    let wrong = stage.judged(&fault, |plan| plan.structure.told_as = "identity");
    assert_eq!(wrong.verdict(), Verdict::Degraded, "{}", wrong.why());
    assert!(wrong.why().starts_with("P5"), "{}", wrong.why());
}

/// Whatever the machine of the test is doing: only what does not depend on time is asked.
#[test]
fn a_cluster_serves_in_real_time_as_well() {
    let stage = Stage::set();
    let outcome = stage.judged(&Fault::None, |plan| {
        plan.pace = Pace::Real;
        plan.unhurt += Duration::from_secs(30);
    });
    let stalled = |why: &str| why.starts_with("P3: a read and a write of one shard took");
    let findings: Vec<_> = outcome
        .findings
        .iter()
        .filter(|found| !stalled(&found.why))
        .collect();
    assert!(findings.is_empty(), "{findings:?}");
    assert!(outcome.times.available_ms.is_some());
}

fn jepsen(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_reelkv-jepsen"))
        .args(arguments)
        .env_remove("REELKV_MUTANT")
        .output()
        .expect("the program runs")
}

#[test]
fn what_cannot_be_run_is_refused_in_one_line_and_changes_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let out = dir.path().join("out");
    let out = out.to_str().expect("a name in UTF-8");
    for (arguments, words) in [
        (&["--tier", "T9"][..], &["T9", "T1f"][..]),
        (&["--tier", "T1,moon"], &["moon"]),
        (&["--engine", "memory"], &["memory", "sled"]),
        (&["--sample", "1.5"], &["1.5", "between 0 and 1"]),
        (&["--sample", "some"], &["some", "number"]),
        (&["--workers", "0"], &["0"]),
        (&["--time", "soon"], &["soon", "virtual"]),
        (&["--case", "T1/x", "--tier", "T1"], &["--case", "--tier"]),
    ] {
        let all = [&["matrix", "--out", out][..], arguments].concat();
        let output = jepsen(&all);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {told}");
        assert!(output.stdout.is_empty(), "{arguments:?} was run");
        for word in words {
            assert!(
                told.contains(word),
                "{arguments:?} does not name {word:?}: {told}"
            );
        }
        assert!(!dir.path().join("out").exists(), "{arguments:?} made a directory");
    }
    for (arguments, words) in [
        (&["--case", "T9/zeros/any"][..], &["T9/zeros/any", "no tier"][..]),
        (&["--case", "T0/zeros/any/no-file"], &["no-file", "no such case"]),
        (&["--tier", "T0", "--sample", "0"], &["--sample 0", "none"]),
    ] {
        let all = [&["matrix", "--out", out][..], arguments].concat();
        let output = jepsen(&all);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {told}");
        assert_eq!(told.trim().lines().count(), 1, "{arguments:?}: {told}");
        for word in words {
            assert!(
                told.contains(word),
                "{arguments:?} does not name {word:?}: {told}"
            );
        }
    }
}

#[test]
fn a_run_keeps_its_tables_and_exits_by_them() {
    let dir = tempfile::tempdir().expect("a directory");
    let out = dir.path().to_str().expect("a name in UTF-8");
    let output = jepsen(&[
        "matrix",
        "--case",
        "T0/every-bit-flipped/any/identity.1",
        "--out",
        out,
    ]);
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{told}");
    assert!(
        told.contains("CORRECT") && told.contains("320 attempts"),
        "{told}"
    );
    let json = std::fs::read(dir.path().join("fault-matrix.json")).expect("it was kept");
    let json: serde_json::Value = serde_json::from_slice(&json).expect("JSON");
    assert_eq!(json["totals"]["correct"], 1);
    assert_eq!(json["cases"][0]["structure"], "identity");
    let page = std::fs::read_to_string(dir.path().join("fault-matrix.md")).expect("it was kept");
    assert!(page.contains("| T0 | none | 1 | 1 | 0 | 0 | 0 |"), "{page}");
}
