use super::*;
use crate::shard::{Applied, LogId};

const TERM: u64 = 4;

fn control() -> Control {
    let descriptor = v1::ShardDescriptor {
        shard_id: 2,
        epoch: Some(v1::ShardEpoch {
            conf_version: 0,
            range_version: 1,
        }),
        ..Default::default()
    };
    let mut control = Control::new(descriptor.shard_id, Control::birth_of(&descriptor, 1));
    control.apply_blank(LogId::new(TERM, 0));
    control
}

fn key(name: &str) -> Bytes {
    reelkv_proto::types::stored_key(1, name.as_bytes())
}

fn put(name: &str, value: &'static str, condition: Option<Condition>) -> Write {
    let operation = WriteOperation {
        key: key(name),
        put: Some((value.into(), 0)),
        condition,
    };
    Write {
        token: None,
        kind: WriteKind::Operations(vec![operation]),
    }
}

fn absent_at(name: &str, read_at: Version) -> ColdRead {
    ColdRead {
        key: key(name),
        read_at,
        found: None,
    }
}

fn proposed(evaluation: Evaluation) -> WriteResult {
    match evaluation {
        Evaluation::Proposed(result) => result,
        other => panic!("expected a proposal, got {other:?}"),
    }
}

#[test]
fn writes_of_one_key_in_one_entry_have_versions_of_their_own() {
    let control = control();
    let mut evaluator = Evaluator::new(&control, TERM);
    assert_eq!(
        proposed(evaluator.evaluate(&put("a", "1", None), &[], &control)).version,
        1
    );
    assert_eq!(
        proposed(evaluator.evaluate(&put("a", "2", None), &[], &control)).version,
        2
    );
    let entry = evaluator.take_entry(9).expect("one entry");
    assert_eq!(
        (
            entry.body().first_version,
            entry.body().effects.len(),
            entry.body().term
        ),
        (1, 2, TERM)
    );
    assert!(evaluator.take_entry(9).is_none());
}

#[test]
fn a_condition_sees_effects_in_flight_before_what_was_read() {
    let control = control();
    let mut evaluator = Evaluator::new(&control, TERM);
    let if_absent = put("a", "1", Some(Condition::Absent(true)));
    let read = [absent_at("a", 0)];
    proposed(evaluator.evaluate(&if_absent, &read, &control));
    assert_eq!(
        evaluator.evaluate(&if_absent, &read, &control),
        Evaluation::Refused(Refusal::ConditionFailed { current: 1 })
    );
    proposed(evaluator.evaluate(&put("a", "2", Some(Condition::Version(1))), &read, &control));
}

#[test]
fn a_condition_without_a_read_is_stale_not_true() {
    let control = control();
    let mut evaluator = Evaluator::new(&control, TERM);
    let if_absent = put("a", "1", Some(Condition::Absent(true)));
    assert_eq!(evaluator.evaluate(&if_absent, &[], &control), Evaluation::Stale);
}

#[test]
fn a_read_older_than_what_the_evaluator_remembers_is_stale() {
    let mut applied = control();
    let mut warm = Evaluator::new(&applied, TERM);
    proposed(warm.evaluate(&put("a", "1", None), &[], &applied));
    let entry = warm.take_entry(0).expect("entry");
    assert!(matches!(
        applied.apply(LogId::new(TERM, 1), entry.body()),
        Ok(Applied::Done(_))
    ));
    // A new evaluator knows nothing of effect 1; a read made before it must not decide.
    let mut evaluator = Evaluator::new(&applied, TERM);
    let if_absent = put("a", "1", Some(Condition::Absent(true)));
    assert_eq!(
        evaluator.evaluate(&if_absent, &[absent_at("a", 0)], &applied),
        Evaluation::Stale
    );
}

#[test]
fn additions_pile_up_in_flight() {
    let control = control();
    let mut evaluator = Evaluator::new(&control, TERM);
    let add = |delta| Write {
        token: None,
        kind: WriteKind::Add { key: key("n"), delta },
    };
    assert_eq!(
        proposed(evaluator.evaluate(&add(5), &[absent_at("n", 0)], &control)).sum,
        Some(5)
    );
    assert_eq!(
        proposed(evaluator.evaluate(&add(-7), &[], &control)).sum,
        Some(-2)
    );
    let refused = evaluator.evaluate(&add(i64::MIN), &[], &control);
    assert_eq!(refused, Evaluation::Refused(Refusal::Overflow));
    proposed(evaluator.evaluate(&put("n", "text", None), &[], &control));
    assert_eq!(
        evaluator.evaluate(&add(1), &[], &control),
        Evaluation::Refused(Refusal::NotAnInteger)
    );
}

#[test]
fn a_batch_is_refused_whole() {
    let control = control();
    let mut evaluator = Evaluator::new(&control, TERM);
    let operation = |name: &str, condition| WriteOperation {
        key: key(name),
        put: Some(("v".into(), 0)),
        condition,
    };
    let operations = vec![operation("a", None), operation("b", Some(Condition::Version(9)))];
    let batch = Write {
        token: None,
        kind: WriteKind::Operations(operations),
    };
    let refused = evaluator.evaluate(&batch, &[absent_at("b", 0)], &control);
    assert_eq!(
        refused,
        Evaluation::Refused(Refusal::ConditionFailed { current: 0 })
    );
    assert!(evaluator.take_entry(0).is_none(), "no half of it is proposed");
}

#[test]
fn a_token_is_executed_once() {
    let mut applied = control();
    let mut evaluator = Evaluator::new(&applied, TERM);
    let open = Write {
        token: None,
        kind: WriteKind::OpenIncarnation,
    };
    let incarnation = proposed(evaluator.evaluate(&open, &[], &applied)).version;
    let entry = evaluator.take_entry(0).expect("entry");
    applied
        .apply(LogId::new(TERM, 1), entry.body())
        .expect("known effects");
    evaluator.applied(entry.body());

    let incarnation = Some(v1::Incarnation {
        shard_id: 2,
        version: incarnation,
    });
    let token = Some(v1::Token {
        incarnation,
        sequence: 1,
        first_unacknowledged: 1,
    });
    let write = Write {
        token,
        ..put("a", "1", None)
    };
    let result = proposed(evaluator.evaluate(&write, &[], &applied));
    assert_eq!(evaluator.evaluate(&write, &[], &applied), Evaluation::InFlight);
    let entry = evaluator.take_entry(0).expect("entry");
    applied
        .apply(LogId::new(TERM, 2), entry.body())
        .expect("known effects");
    evaluator.applied(entry.body());
    assert_eq!(
        evaluator.evaluate(&write, &[], &applied),
        Evaluation::Duplicate(result)
    );
}

#[test]
fn a_narrowed_range_travels_alone_and_refuses_what_it_gave_away() {
    let control = control();
    let mut evaluator = Evaluator::new(&control, TERM);
    proposed(evaluator.evaluate(&put("a", "1", None), &[], &control));
    let narrow = Write {
        token: None,
        kind: WriteKind::NarrowTo {
            end: key("m"),
            empty_at: 0,
        },
    };
    assert_eq!(evaluator.evaluate(&narrow, &[], &control), Evaluation::SealFirst);
    evaluator.take_entry(0);
    proposed(evaluator.evaluate(&narrow, &[], &control));
    assert_eq!(
        evaluator.evaluate(&put("b", "1", None), &[], &control),
        Evaluation::SealFirst
    );
    assert!(matches!(
        evaluator.evaluate(&put("z", "1", None), &[], &control),
        Evaluation::Refused(Refusal::KeyNotInShard { .. })
    ));
    assert_eq!(
        evaluator.take_entry(0).map(|entry| entry.body().range_version),
        Some(1)
    );
    proposed(evaluator.evaluate(&put("b", "1", None), &[], &control));
    assert_eq!(
        evaluator.take_entry(0).map(|entry| entry.body().range_version),
        Some(2)
    );
}

#[test]
fn a_range_with_records_in_flight_is_not_given_away() {
    let control = control();
    let mut evaluator = Evaluator::new(&control, TERM);
    proposed(evaluator.evaluate(&put("z", "1", None), &[], &control));
    evaluator.take_entry(0);
    let narrow = Write {
        token: None,
        kind: WriteKind::NarrowTo {
            end: key("m"),
            empty_at: 0,
        },
    };
    assert_eq!(
        evaluator.evaluate(&narrow, &[], &control),
        Evaluation::Refused(Refusal::NotEmpty)
    );
}
