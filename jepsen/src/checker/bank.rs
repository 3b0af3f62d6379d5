//! Accounts: whatever is moved between them, every view holds the same total.

use std::collections::{BTreeMap, BTreeSet};

use super::{Verdict, show};
use crate::history::{Action, Answer, Event, Outcome};

/// A reading of a group, and what its accounts held.
type Reading<'h> = (&'h Event, &'h Vec<(u64, i64)>);

/// Judges transfers and readings of groups of `accounts` accounts that hold `total` together, the
/// same each in the beginning.
pub fn check(history: &[Event], accounts: u64, total: i64) -> Verdict {
    let mut findings = Vec::new();
    let mut last: BTreeMap<u64, Reading<'_>> = BTreeMap::new();
    for event in history {
        let (Action::ReadBalances { group }, Some(Answer::Balances(balances))) =
            (&event.action, event.answer())
        else {
            continue;
        };
        if let Some(wrong) = wrong(balances, accounts, total) {
            findings.push(format!("{wrong}, found {balances:?}: {}", show::event(event)));
        }
        let later = |known: &&Reading<'_>| known.0.invoked_us > event.invoked_us;
        if last.get(group).filter(later).is_none() {
            last.insert(*group, (event, balances));
        }
    }
    for (group, (read, balances)) in last {
        findings.extend(moved(history, group, read, balances, total / accounts as i64));
    }
    Verdict::of(show::first(findings))
}

fn wrong(balances: &[(u64, i64)], accounts: u64, total: i64) -> Option<String> {
    let named: BTreeSet<u64> = balances.iter().map(|(account, _)| *account).collect();
    let sum: i64 = balances.iter().map(|(_, balance)| *balance).sum();
    if balances.len() as u64 != accounts || named != (0..accounts).collect() {
        Some("not all accounts once".to_owned())
    } else if sum != total {
        Some(format!("the accounts hold {sum}, not {total}"))
    } else if balances.iter().any(|(_, balance)| *balance < 0) {
        Some("an account is overdrawn".to_owned())
    } else {
        None
    }
}

/// The last reading of a group shows each acknowledged transfer that was over before it, each of
/// unknown outcome once or not at all, and none that failed.
fn moved(history: &[Event], group: u64, read: &Event, balances: &[(u64, i64)], share: i64) -> Vec<String> {
    let mut findings = Vec::new();
    for (account, balance) in balances {
        let (mut least, mut most) = (share, share);
        for event in history {
            let Action::Transfer {
                group: of,
                from,
                to,
                amount,
            } = event.action
            else {
                continue;
            };
            let change = amount * (i64::from(to == *account) - i64::from(from == *account));
            let never = matches!(
                event.outcome,
                Outcome::Fail(_) | Outcome::Ok(Answer::Refused { .. })
            );
            if of != group || never || event.invoked_us > read.completed_us {
                continue;
            }
            let certain = event.is_done() && event.completed_us < read.invoked_us;
            least += if certain { change } else { change.min(0) };
            most += if certain { change } else { change.max(0) };
        }
        if *balance < least || *balance > most {
            findings.push(format!(
                "account {account} of group {group} holds {balance}; transfers make it {least} to {most}: {}",
                show::event(read)
            ));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(action: Action, outcome: Outcome, at_us: u64) -> Event {
        Event {
            client: 1,
            action,
            outcome,
            invoked_us: at_us,
            completed_us: at_us + 5,
        }
    }

    fn transfer(amount: i64, outcome: Outcome, at_us: u64) -> Event {
        let action = Action::Transfer {
            group: 0,
            from: 0,
            to: 1,
            amount,
        };
        event(action, outcome, at_us)
    }

    fn done() -> Outcome {
        Outcome::Ok(Answer::Done { version: None })
    }

    fn read(balances: &[(u64, i64)], at_us: u64) -> Event {
        let found = Answer::Balances(balances.to_vec());
        event(Action::ReadBalances { group: 0 }, Outcome::Ok(found), at_us)
    }

    fn judged(history: &[Event]) -> Verdict {
        check(history, 2, 100)
    }

    fn findings(history: &[Event]) -> String {
        match judged(history) {
            Verdict::Fail { findings } => findings.join("\n"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn transfers_keep_the_total() {
        let history = [
            read(&[(0, 50), (1, 50)], 0),
            transfer(20, done(), 10),
            read(&[(0, 30), (1, 70)], 20),
        ];
        assert_eq!(judged(&history), Verdict::Pass);
    }

    #[test]
    fn a_torn_view_a_missing_account_and_an_overdraft_are_found() {
        assert!(findings(&[read(&[(0, 30), (1, 50)], 0)]).contains("hold 80"));
        assert!(findings(&[read(&[(0, 100)], 0)]).contains("not all accounts once"));
        assert!(findings(&[read(&[(0, 50), (0, 50)], 0)]).contains("not all accounts once"));
        assert!(findings(&[transfer(60, done(), 0), read(&[(0, -10), (1, 110)], 10)]).contains("overdrawn"));
    }

    #[test]
    fn an_acknowledged_transfer_shows_once_a_failed_one_never_an_unknown_one_perhaps() {
        assert!(findings(&[transfer(20, done(), 0), read(&[(0, 50), (1, 50)], 10)]).contains("holds 50"));
        assert!(findings(&[transfer(20, done(), 0), read(&[(0, 10), (1, 90)], 10)]).contains("holds 10"));
        let failed = transfer(20, Outcome::Fail("busy".into()), 0);
        assert!(findings(&[failed, read(&[(0, 30), (1, 70)], 10)]).contains("holds 30"));
        let unknown = transfer(20, Outcome::Info("silence".into()), 0);
        assert_eq!(
            judged(&[unknown.clone(), read(&[(0, 50), (1, 50)], 10)]),
            Verdict::Pass
        );
        assert_eq!(
            judged(&[unknown.clone(), read(&[(0, 30), (1, 70)], 10)]),
            Verdict::Pass
        );
        findings(&[unknown, read(&[(0, 10), (1, 90)], 10)]);
    }
}
