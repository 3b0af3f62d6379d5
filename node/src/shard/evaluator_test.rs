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
        ttl_ms: 0,
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
    let entry = evaluator.take_entry().expect("one entry");
    assert_eq!(
        (
            entry.body().first_version,
            entry.body().effects.len(),
            entry.body().term
        ),
        (1, 2, TERM)
    );
    assert!(evaluator.take_entry().is_none());
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
    let entry = warm.take_entry().expect("entry");
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
        ttl_ms: 0,
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
    assert!(evaluator.take_entry().is_none(), "no half of it is proposed");
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
    let entry = evaluator.take_entry().expect("entry");
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
    let entry = evaluator.take_entry().expect("entry");
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
    evaluator.take_entry();
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
        evaluator.take_entry().map(|entry| entry.body().range_version),
        Some(1)
    );
    proposed(evaluator.evaluate(&put("b", "1", None), &[], &control));
    assert_eq!(
        evaluator.take_entry().map(|entry| entry.body().range_version),
        Some(2)
    );
}

#[test]
fn a_range_with_records_in_flight_is_not_given_away() {
    let control = control();
    let mut evaluator = Evaluator::new(&control, TERM);
    proposed(evaluator.evaluate(&put("z", "1", None), &[], &control));
    evaluator.take_entry();
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

fn put_for(name: &str, value: &'static str, ttl_ms: u64, condition: Option<Condition>) -> Write {
    let operation = WriteOperation {
        key: key(name),
        put: Some((value.into(), 0)),
        ttl_ms,
        condition,
    };
    Write {
        token: None,
        kind: WriteKind::Operations(vec![operation]),
    }
}

fn add(name: &str, delta: i64) -> Write {
    Write {
        token: None,
        kind: WriteKind::Add {
            key: key(name),
            delta,
        },
    }
}

fn found(name: &str, version: Version, value: &[u8], expires_at_ms: u64) -> ColdRead {
    ColdRead {
        key: key(name),
        read_at: version,
        found: Some(Found {
            version,
            value: Bytes::copy_from_slice(value),
            expires_at_ms,
        }),
    }
}

/// The puts of an entry: value and time of expiry.
fn puts(entry: &Command) -> Vec<(Bytes, u64)> {
    let put = |effect: &v1::Effect| match &effect.kind {
        Some(Kind::Put(put)) => Some((put.value.clone(), put.expires_at_ms)),
        _ => None,
    };
    entry.body().effects.iter().filter_map(put).collect()
}

#[test]
fn a_time_to_live_counts_from_the_entrys_own_logged_time() {
    let control = control();
    let mut evaluator = Evaluator::new(&control, TERM);
    evaluator.tell_time(Some(1_000));
    proposed(evaluator.evaluate(&put_for("a", "1", 50, None), &[], &control));
    proposed(evaluator.evaluate(&put_for("b", "2", 0, None), &[], &control));
    proposed(evaluator.evaluate(&put_for("c", "3", u64::MAX, None), &[], &control));
    let entry = evaluator.take_entry().expect("entry");
    assert_eq!(entry.body().logged_time_ms, 1_000);
    assert_eq!(
        puts(&entry),
        [("1".into(), 1_050), ("2".into(), 0), ("3".into(), u64::MAX)]
    );
    // A clock that was set back does not take the log's time with it.
    evaluator.tell_time(Some(400));
    proposed(evaluator.evaluate(&put_for("a", "4", 50, None), &[], &control));
    let entry = evaluator.take_entry().expect("entry");
    assert_eq!((entry.body().logged_time_ms, puts(&entry)[0].1), (1_000, 1_050));
}

#[test]
fn nothing_that_expires_is_written_while_nobody_knows_the_time() {
    let control = control();
    let mut evaluator = Evaluator::new(&control, TERM);
    let expiring = put_for("a", "1", 50, None);
    let refused = Evaluation::Refused(Refusal::TimeUnknown);
    assert_eq!(evaluator.evaluate(&expiring, &[], &control), refused);
    evaluator.tell_time(Some(7));
    proposed(evaluator.evaluate(&expiring, &[], &control));
    evaluator.tell_time(None);
    assert_eq!(evaluator.evaluate(&expiring, &[], &control), refused);
    proposed(evaluator.evaluate(&put("a", "2", None), &[], &control));
    assert_eq!(
        evaluator.take_entry().map(|entry| entry.body().logged_time_ms),
        Some(7)
    );
}

#[test]
fn what_has_expired_is_absent_to_conditions_whether_read_or_in_flight() {
    let control = control();
    let if_absent = || put("a", "new", Some(Condition::Absent(true)));
    let if_1 = || put("a", "new", Some(Condition::Version(1)));
    let failed = |current| Evaluation::Refused(Refusal::ConditionFailed { current });

    let read = [found("a", 1, b"old", 1_050)];
    let in_flight = || {
        let mut evaluator = Evaluator::new(&control, TERM);
        evaluator.tell_time(Some(1_000));
        proposed(evaluator.evaluate(&put_for("a", "old", 50, None), &[], &control));
        evaluator.take_entry();
        evaluator
    };
    let cold = || Evaluator::new(&control, TERM);
    for (begin, reads) in [
        (&cold as &dyn Fn() -> Evaluator, &read[..]),
        (&in_flight as &dyn Fn() -> Evaluator, &[]),
    ] {
        let at = |now_ms| {
            let mut evaluator = begin();
            evaluator.tell_time(Some(now_ms));
            evaluator
        };
        assert_eq!(at(1_049).evaluate(&if_absent(), reads, &control), failed(1));
        proposed(at(1_049).evaluate(&if_1(), reads, &control));
        proposed(at(1_050).evaluate(&if_absent(), reads, &control));
        assert_eq!(at(1_050).evaluate(&if_1(), reads, &control), failed(0));
    }
}

#[test]
fn a_refusal_that_rests_on_an_expiry_has_the_time_logged_first() {
    let control = control();
    let mut evaluator = Evaluator::new(&control, TERM);
    let if_1 = put("a", "new", Some(Condition::Version(1)));
    let reads = [found("a", 1, b"old", 1_050)];
    let failed = |current| Evaluation::Refused(Refusal::ConditionFailed { current });
    evaluator.tell_time(Some(1_050));
    assert_eq!(evaluator.evaluate(&if_1, &reads, &control), failed(0));
    let entry = evaluator.take_entry().expect("a tick");
    assert_eq!(entry.body().logged_time_ms, 1_050);
    assert!(matches!(
        entry.body().effects[..],
        [v1::Effect {
            kind: Some(Kind::Tick(_))
        }]
    ));
    // Once logged, refusals need no more of them; nor do those that rest on no expiry.
    evaluator.tell_time(Some(2_000));
    assert_eq!(evaluator.evaluate(&if_1, &reads, &control), failed(0));
    assert!(evaluator.take_entry().is_none());
    let other = put("b", "new", Some(Condition::Version(1)));
    assert_eq!(
        evaluator.evaluate(&other, &[absent_at("b", 1)], &control),
        failed(0)
    );
    assert!(evaluator.take_entry().is_none());
}

#[test]
fn an_addition_keeps_the_expiry_and_begins_at_0_without_one_after_it() {
    let control = control();
    let read = [found("n", 1, &5_i64.to_be_bytes(), 1_050)];
    for (now_ms, sum, expires_at_ms) in [(1_049, 6, 1_050), (1_050, 1, 0)] {
        let mut evaluator = Evaluator::new(&control, TERM);
        evaluator.tell_time(Some(now_ms));
        let added = proposed(evaluator.evaluate(&add("n", 1), &read, &control));
        assert_eq!(added.sum, Some(sum));
        // The next one goes on from what is in flight.
        let added = proposed(evaluator.evaluate(&add("n", 1), &[], &control));
        assert_eq!(added.sum, Some(sum + 1));
        let entry = evaluator.take_entry().expect("entry");
        assert_eq!(
            puts(&entry).iter().map(|put| put.1).collect::<Vec<_>>(),
            [expires_at_ms; 2]
        );
    }
}

#[test]
fn only_what_has_expired_by_now_is_removed() {
    let control = control();
    let mut evaluator = Evaluator::new(&control, TERM);
    evaluator.tell_time(Some(1_000));
    // Written again after the walk that found it expired.
    proposed(evaluator.evaluate(&put("again", "new", None), &[], &control));
    proposed(evaluator.evaluate(&put_for("later", "new", 50, None), &[], &control));
    evaluator.take_entry();
    let remove = |names: &[&str]| Write {
        token: None,
        kind: WriteKind::RemoveExpired {
            keys: names.iter().map(|name| key(name)).collect(),
        },
    };
    let all = remove(&["again", "expired", "gone", "later", "stays"]);
    let reads = [
        found("again", 1, b"old", 900),
        found("expired", 1, b"old", 1_000),
        absent_at("gone", 1),
        found("later", 1, b"old", 900),
        found("stays", 1, b"old", 0),
    ];
    assert_eq!(all.judged_keys().count(), 5);
    proposed(evaluator.evaluate(&all, &reads, &control));
    let entry = evaluator.take_entry().expect("entry");
    let kinds: Vec<_> = entry
        .body()
        .effects
        .iter()
        .map(|effect| effect.kind.clone())
        .collect();
    let delete = v1::DeleteEffect { key: key("expired") };
    assert_eq!(kinds, [Some(Kind::Delete(delete))]);
    // Nothing of it left: a number is taken all the same.
    proposed(evaluator.evaluate(&remove(&["stays"]), &reads, &control));
    let entry = evaluator.take_entry().expect("entry");
    assert!(matches!(
        entry.body().effects[..],
        [v1::Effect {
            kind: Some(Kind::Tick(_))
        }]
    ));
    assert_eq!(
        evaluator.evaluate(&remove(&["unread"]), &[], &control),
        Evaluation::Stale
    );
}
