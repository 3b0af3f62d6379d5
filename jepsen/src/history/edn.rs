//! Histories in Jepsen's form, so that Knossos or Elle can give a second opinion.
//!
//! One map a line: `{:index 0, :type :invoke, :process 0, :time 1000, :f :read, :value [7 nil]}` and
//! later its `:ok`, `:fail` or `:info`, in the order of time, in nanoseconds. Registers are
//! independent keys, `[key value]`; a condition is `:cas [key [old new]]`; lists are Elle's transactions,
//! `:txn [[:append 7 1]]` and `[[:r 7 [1]]]`. A process whose outcome nobody knows is used no more:
//! its client goes on under another number.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::path::Path;

use super::{Action, Answer, Event, Outcome};

/// Writes a history in Jepsen's form.
///
/// # Errors
/// The file cannot be written.
#[allow(clippy::disallowed_methods)] // a report is a file of this process, not of a node
pub fn write(file: &Path, history: &[Event]) -> io::Result<()> {
    std::fs::write(file, text(history))
}

struct Half<'h> {
    at_us: u64,
    /// Invocations come before completions of the same moment.
    completes: bool,
    event: &'h Event,
    process: u64,
}

fn text(history: &[Event]) -> String {
    let mut text = String::new();
    for (index, half) in halves(history).iter().enumerate() {
        let event = half.event;
        let (kind, value) = match half.completes {
            false => ("invoke", asked(&event.action)),
            true => told(event),
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{{:index {index}, :type :{kind}, :process {}, :time {}, :f :{}, :value {value}}}",
            half.process,
            half.at_us * 1_000,
            function(&event.action)
        );
    }
    text
}

fn halves(history: &[Event]) -> Vec<Half<'_>> {
    let clients = history.iter().map(|event| event.client + 1).max().unwrap_or(0);
    let mut by_invocation: Vec<&Event> = history.iter().collect();
    by_invocation.sort_by_key(|event| (event.invoked_us, event.completed_us));
    let mut free: BTreeMap<u64, Vec<(u64, u64)>> = BTreeMap::new();
    let mut next: BTreeMap<u64, u64> = BTreeMap::new();
    let mut halves = Vec::with_capacity(history.len() * 2);
    for event in by_invocation {
        // A client may have several calls under way; each needs a process that is free.
        let of_client = free.entry(event.client).or_default();
        let reusable = of_client
            .iter()
            .position(|(until_us, _)| *until_us < event.invoked_us);
        let process = match reusable {
            Some(at) => of_client.swap_remove(at).1,
            None => {
                let next = next.entry(event.client).or_insert(event.client);
                std::mem::replace(next, *next + clients)
            }
        };
        if !is_indefinite(event) {
            of_client.push((event.completed_us, process));
        }
        for (at_us, completes) in [(event.invoked_us, false), (event.completed_us, true)] {
            halves.push(Half {
                at_us,
                completes,
                event,
                process,
            });
        }
    }
    halves.sort_by_key(|half| (half.at_us, half.completes));
    halves
}

/// A read that nobody answered has certainly had no effect.
fn is_indefinite(event: &Event) -> bool {
    event.is_unknown() && !is_read(&event.action)
}

fn is_read(action: &Action) -> bool {
    matches!(
        action,
        Action::Read { .. }
            | Action::ReadCounter { .. }
            | Action::ReadSet
            | Action::ReadBalances { .. }
            | Action::ReadPage { .. }
            | Action::ReadList { .. }
    )
}

fn function(action: &Action) -> &'static str {
    match action {
        Action::Read { .. }
        | Action::ReadCounter { .. }
        | Action::ReadSet
        | Action::ReadBalances { .. }
        | Action::ReadPage { .. } => "read",
        Action::Write { .. } | Action::WriteFor { .. } | Action::WriteGroup { .. } => "write",
        Action::Delete { .. } => "delete",
        Action::WriteIf { .. } => "cas",
        Action::Add { .. } | Action::Insert { .. } => "add",
        Action::Transfer { .. } => "transfer",
        Action::Append { .. } | Action::ReadList { .. } => "txn",
        Action::Probe { .. } => "probe",
    }
}

fn asked(action: &Action) -> String {
    match action {
        Action::Read { key } | Action::ReadCounter { key } | Action::Delete { key } => format!("[{key} nil]"),
        Action::ReadBalances { group } | Action::ReadPage { group, .. } => format!("[{group} nil]"),
        Action::ReadSet => "nil".to_owned(),
        Action::Write { key, value } | Action::WriteFor { key, value, .. } => format!("[{key} {value}]"),
        Action::WriteGroup { group, value } => format!("[{group} {value}]"),
        Action::WriteIf { key, expected, new } => format!("[{key} [{} {new}]]", present(*expected)),
        Action::Add { key, delta } => format!("[{key} {delta}]"),
        Action::Insert { element } => element.to_string(),
        Action::Transfer {
            group,
            from,
            to,
            amount,
        } => format!("[{group} {{:from {from}, :to {to}, :amount {amount}}}]"),
        Action::Append { key, element } => format!("[[:append {key} {element}]]"),
        Action::ReadList { key } => format!("[[:r {key} nil]]"),
        Action::Probe { shard } => shard.to_string(),
    }
}

/// The kind of completion, and the value it carries.
fn told(event: &Event) -> (&'static str, String) {
    let answer = match &event.outcome {
        Outcome::Info(_) if is_indefinite(event) => return ("info", asked(&event.action)),
        Outcome::Info(_) | Outcome::Fail(_) | Outcome::Ok(Answer::Refused { .. }) => {
            return ("fail", asked(&event.action));
        }
        Outcome::Ok(answer) => answer,
    };
    let value = match (&event.action, answer) {
        (Action::Read { key }, Answer::Value { value, .. }) => format!("[{key} {}]", present(*value)),
        (Action::ReadCounter { key }, Answer::Sum(sum)) => format!("[{key} {sum}]"),
        (Action::ReadSet, Answer::List(list)) => format!("#{{{}}}", joined(list)),
        (Action::ReadPage { group, .. }, Answer::List(list)) => format!("[{group} [{}]]", joined(list)),
        (Action::ReadList { key }, Answer::List(list)) => format!("[[:r {key} [{}]]]", joined(list)),
        (Action::ReadBalances { group }, Answer::Balances(balances)) => {
            let account = |(account, balance): &(u64, i64)| format!("{account} {balance}");
            let accounts: Vec<String> = balances.iter().map(account).collect();
            format!("[{group} {{{}}}]", accounts.join(", "))
        }
        _ => asked(&event.action),
    };
    ("ok", value)
}

/// A value, or nil where there is none.
fn present(value: u64) -> String {
    match value {
        0 => "nil".to_owned(),
        value => value.to_string(),
    }
}

fn joined(list: &[u64]) -> String {
    let words: Vec<String> = list.iter().map(u64::to_string).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(client: u64, action: Action, outcome: Outcome, invoked_us: u64, completed_us: u64) -> Event {
        Event {
            client,
            action,
            outcome,
            invoked_us,
            completed_us,
        }
    }

    #[test]
    fn registers_are_independent_keys_and_a_lost_process_comes_back_under_another_number() {
        let done = Outcome::Ok(Answer::Done { version: Some(1) });
        let absent = Answer::Value {
            value: 0,
            version: None,
        };
        let condition = Action::WriteIf {
            key: 7,
            expected: 3,
            new: 4,
        };
        let history = [
            event(1, Action::Read { key: 7 }, Outcome::Ok(absent), 1, 2),
            event(
                0,
                Action::Write { key: 7, value: 3 },
                Outcome::Info("silence".into()),
                1,
                4,
            ),
            event(1, condition, Outcome::Ok(Answer::Refused { version: 2 }), 3, 5),
            event(0, Action::Delete { key: 7 }, done, 5, 7),
        ];
        let expected = "\
{:index 0, :type :invoke, :process 1, :time 1000, :f :read, :value [7 nil]}
{:index 1, :type :invoke, :process 0, :time 1000, :f :write, :value [7 3]}
{:index 2, :type :ok, :process 1, :time 2000, :f :read, :value [7 nil]}
{:index 3, :type :invoke, :process 1, :time 3000, :f :cas, :value [7 [3 4]]}
{:index 4, :type :info, :process 0, :time 4000, :f :write, :value [7 3]}
{:index 5, :type :invoke, :process 2, :time 5000, :f :delete, :value [7 nil]}
{:index 6, :type :fail, :process 1, :time 5000, :f :cas, :value [7 [3 4]]}
{:index 7, :type :ok, :process 2, :time 7000, :f :delete, :value [7 nil]}
";
        assert_eq!(text(&history), expected);
    }

    #[test]
    fn lists_are_transactions_and_a_read_nobody_answered_failed() {
        let list = Outcome::Ok(Answer::List(vec![1, 2]));
        let silence = || Outcome::Info("silence".into());
        let history = [
            event(0, Action::Append { key: 7, element: 2 }, silence(), 1, 2),
            event(0, Action::ReadList { key: 7 }, list, 3, 4),
            event(0, Action::ReadList { key: 7 }, silence(), 5, 6),
        ];
        let expected = "\
{:index 0, :type :invoke, :process 0, :time 1000, :f :txn, :value [[:append 7 2]]}
{:index 1, :type :info, :process 0, :time 2000, :f :txn, :value [[:append 7 2]]}
{:index 2, :type :invoke, :process 1, :time 3000, :f :txn, :value [[:r 7 nil]]}
{:index 3, :type :ok, :process 1, :time 4000, :f :txn, :value [[:r 7 [1 2]]]}
{:index 4, :type :invoke, :process 1, :time 5000, :f :txn, :value [[:r 7 nil]]}
{:index 5, :type :fail, :process 1, :time 6000, :f :txn, :value [[:r 7 nil]]}
";
        assert_eq!(text(&history), expected);
    }
}
