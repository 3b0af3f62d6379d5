use super::*;

fn event(action: Action, outcome: Outcome, invoked_us: u64, completed_us: u64) -> Event {
    Event {
        client: 1,
        action,
        outcome,
        invoked_us,
        completed_us,
    }
}

fn done(version: u64) -> Outcome {
    Outcome::Ok(Answer::Done {
        version: Some(version),
    })
}

fn write(value: u64, version: u64, at_us: u64) -> Event {
    event(Action::Write { key: 7, value }, done(version), at_us, at_us + 5)
}

fn delete(version: u64, at_us: u64) -> Event {
    event(Action::Delete { key: 7 }, done(version), at_us, at_us + 5)
}

fn read(value: u64, version: Option<u64>, at_us: u64) -> Event {
    let answer = Answer::Value { value, version };
    event(Action::Read { key: 7 }, Outcome::Ok(answer), at_us, at_us + 5)
}

fn finding(history: &[Event]) -> String {
    match check(history) {
        Verdict::Fail { findings } => findings.join("\n"),
        other => panic!("{other:?} of {history:#?}"),
    }
}

#[test]
fn what_was_deleted_is_absent_and_stays_so() {
    let history = [
        write(1, 1, 0),
        delete(2, 10),
        read(0, None, 20),
        write(2, 3, 30),
        delete(4, 40),
        read(0, None, 50),
    ];
    assert_eq!(check(&history), Verdict::Pass);
    let back = [
        write(1, 1, 0),
        delete(2, 10),
        read(0, None, 20),
        read(1, Some(1), 30),
    ];
    let found = finding(&back);
    assert!(
        found.contains("key 7") && found.contains("a read went back"),
        "{found}"
    );
    // Also when the answer names no version that gives it away.
    let back = [
        write(1, 1, 0),
        delete(2, 10),
        read(0, None, 20),
        read(1, None, 30),
    ];
    assert!(finding(&back).contains("no place for"));
}

#[test]
fn a_delete_of_unknown_outcome_may_come_late_or_never_but_not_twice() {
    let unknown = event(Action::Delete { key: 7 }, Outcome::Info("silence".into()), 10, 20);
    let late = [
        write(1, 1, 0),
        unknown.clone(),
        read(1, Some(1), 30),
        read(0, None, 40),
    ];
    assert_eq!(check(&late), Verdict::Pass);
    assert_eq!(check(&late[..3]), Verdict::Pass);
    let twice = [late.as_slice(), &[write(2, 2, 50), read(0, None, 60)]].concat();
    finding(&twice);
    let failed = event(Action::Delete { key: 7 }, Outcome::Fail("busy".into()), 10, 20);
    finding(&[write(1, 1, 0), failed.clone(), read(0, None, 30)]);
    assert_eq!(
        check(&[failed, read(0, None, 30)]),
        Verdict::Pass,
        "absent needs no delete"
    );
}

#[test]
fn a_condition_that_was_refused_is_a_read() {
    let refused = |version| {
        let action = Action::WriteIf {
            key: 7,
            expected: 1,
            new: 9,
        };
        event(action, Outcome::Ok(Answer::Refused { version }), 20, 25)
    };
    assert_eq!(
        check(&[write(1, 1, 0), write(2, 2, 10), refused(2)]),
        Verdict::Pass
    );
    finding(&[write(1, 1, 0), refused(1)]);
    // Absent: something must have taken it away.
    finding(&[write(1, 1, 0), refused(0)]);
    assert_eq!(check(&[write(1, 1, 0), delete(2, 10), refused(0)]), Verdict::Pass);
}

#[test]
fn a_value_with_a_time_to_live_vanishes_then_and_not_before() {
    let action = Action::WriteFor {
        key: 7,
        value: 1,
        ttl_ms: 10_000,
    };
    let written = event(action, done(1), 0, 5);
    let at = |second: u64| second * 1_000_000;
    let in_time = [
        written.clone(),
        read(1, Some(1), at(9)),
        read(0, None, at(11)),
        read(0, None, at(12)),
    ];
    assert_eq!(check(&in_time), Verdict::Pass);
    finding(&[written.clone(), read(0, None, at(5))]);
    finding(&[written, read(0, None, at(11)), read(1, Some(1), at(12))]);
}

#[test]
fn keys_are_judged_apart() {
    let mut other = read(1, Some(1), 10);
    other.action = Action::Read { key: 8 };
    assert_eq!(check(&[write(1, 1, 0), read(1, Some(1), 10)]), Verdict::Pass);
    assert!(finding(&[write(1, 1, 0), other]).contains("key 8"));
}

/// Clients that take turns at a real register, some of which never hear how it ended: such a
/// history must be recognised at once, and no longer if one read shows something older.
#[test]
fn long_histories_are_judged_quickly_and_one_old_read_is_found() {
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};
    for seed in 0..20 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let (mut value, mut version, mut history) = (0, 0, Vec::new());
        let mut free_at_us = [0; 8];
        for number in 1..=1_000u64 {
            let effect_us = number * 100;
            let client = (0..8).min_by_key(|client| free_at_us[*client]).unwrap_or(0);
            let invoked_us = effect_us
                .saturating_sub(rng.random_range(1..300))
                .max(free_at_us[client]);
            let completed_us = effect_us.max(invoked_us) + rng.random_range(1..300);
            if invoked_us > effect_us {
                continue;
            }
            free_at_us[client] = completed_us + 1;
            let unknown = rng.random_ratio(1, 50);
            let (action, outcome) = match rng.random_range(0..10) {
                0..6 => {
                    let found = Answer::Value {
                        value,
                        version: (value > 0).then_some(version),
                    };
                    (Action::Read { key: 7 }, Outcome::Ok(found))
                }
                6..8 if !unknown => {
                    (value, version) = (0, version + 1);
                    (Action::Delete { key: 7 }, done(version))
                }
                _ => {
                    if !unknown || rng.random() {
                        (value, version) = (number, version + 1);
                    }
                    let outcome = if unknown {
                        Outcome::Info("silence".into())
                    } else {
                        done(version)
                    };
                    (
                        Action::Write {
                            key: 7,
                            value: number,
                        },
                        outcome,
                    )
                }
            };
            history.push(event(action, outcome, invoked_us, completed_us));
        }
        assert_eq!(check(&history), Verdict::Pass, "seed {seed}");
        let values: Vec<(usize, u64)> = history
            .iter()
            .enumerate()
            .filter_map(|(at, event)| match event.answer() {
                Some(Answer::Value { value, .. }) if *value > 0 => Some((at, *value)),
                _ => None,
            })
            .collect();
        let old = values[values.len() / 4].1;
        let at = values[values.len() * 3 / 4].0;
        history[at].outcome = Outcome::Ok(Answer::Value {
            value: old,
            version: None,
        });
        assert!(check(&history).is_fail(), "seed {seed}: a read of {old} at {at}");
    }
}
