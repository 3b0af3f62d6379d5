//! How findings show events, times and long lists: in words, on one line.

use crate::history::{Action, Answer, Event, Outcome};

/// Elements of a list that a finding shows.
const SHOWN_MAX: usize = 5;

/// Findings that a judge reports one by one.
const FINDINGS_MAX: usize = 20;

/// What a client did, what it was told, and when.
pub(crate) fn event(event: &Event) -> String {
    let Event { client, action, .. } = event;
    format!(
        "client {client}: {} -> {} ({})",
        asked(action),
        told(&event.outcome),
        span(event)
    )
}

/// From when to when an event lasted.
pub(crate) fn span(event: &Event) -> String {
    format!("{}..{} s", seconds(event.invoked_us), seconds(event.completed_us))
}

/// A time in seconds, to the microsecond.
pub(crate) fn seconds(time_us: u64) -> String {
    format!("{}.{:06}", time_us / 1_000_000, time_us % 1_000_000)
}

/// The first few of many, and how many there are.
pub(crate) fn some(elements: &[u64]) -> String {
    let shown: Vec<String> = elements.iter().take(SHOWN_MAX).map(u64::to_string).collect();
    match elements.len() > SHOWN_MAX {
        true => format!("{}, ... ({} in all)", shown.join(", "), elements.len()),
        false => shown.join(", "),
    }
}

/// The first findings, and how many more there are: one fault can show in every read after it.
pub(crate) fn first(mut findings: Vec<String>) -> Vec<String> {
    let more = findings.len().saturating_sub(FINDINGS_MAX);
    if more > 0 {
        findings.truncate(FINDINGS_MAX);
        findings.push(format!("and {more} more findings of the same judge"));
    }
    findings
}

fn asked(action: &Action) -> String {
    match action {
        Action::Read { key } => format!("read key {key}"),
        Action::Write { key, value } => format!("write {value} to key {key}"),
        Action::Delete { key } => format!("delete key {key}"),
        Action::WriteIf { key, expected, new } => format!("write {new} to key {key} if it is {expected}"),
        Action::WriteFor { key, value, ttl_ms } => format!("write {value} to key {key} for {ttl_ms} ms"),
        Action::Add { key, delta } => format!("add {delta} to counter {key}"),
        Action::ReadCounter { key } => format!("read counter {key}"),
        Action::Insert { element } => format!("insert {element}"),
        Action::ReadSet => "read the set".into(),
        Action::Transfer {
            group,
            from,
            to,
            amount,
        } => format!("move {amount} from {from} to {to} in group {group}"),
        Action::ReadBalances { group } => format!("read the balances of group {group}"),
        Action::WriteGroup { group, value } => format!("write {value} to group {group}"),
        Action::ReadPage { group, page } => format!("read page {page} of group {group}"),
        Action::Append { key, element } => format!("append {element} to list {key}"),
        Action::ReadList { key } => format!("read list {key}"),
        Action::Probe { shard } => format!("probe shard {shard}"),
    }
}

fn told(outcome: &Outcome) -> String {
    let at =
        |version: &Option<u64>| version.map_or(String::new(), |version| format!(" at version {version}"));
    match outcome {
        Outcome::Ok(Answer::Done { version }) => format!("done{}", at(version)),
        Outcome::Ok(Answer::Value { value: 0, .. }) => "absent".into(),
        Outcome::Ok(Answer::Value { value, version }) => format!("{value}{}", at(version)),
        Outcome::Ok(Answer::Refused { version: 0 }) => "refused, absent".into(),
        Outcome::Ok(Answer::Refused { version }) => format!("refused at version {version}"),
        Outcome::Ok(Answer::Sum(sum)) => sum.to_string(),
        Outcome::Ok(Answer::List(elements)) => format!("[{}]", some(elements)),
        Outcome::Ok(Answer::Balances(balances)) => format!("{} balances", balances.len()),
        Outcome::Fail(why) => format!("failed, {}", line(why)),
        Outcome::Info(why) => format!("unknown, {}", line(why)),
    }
}

/// Other people's words, on one line and not too long.
fn line(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").chars().take(120).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line() {
        let read = Event {
            client: 3,
            action: Action::Read { key: 7 },
            outcome: Outcome::Ok(Answer::Value {
                value: 5,
                version: Some(9),
            }),
            invoked_us: 1_000_002,
            completed_us: 2_500_000,
        };
        assert_eq!(
            event(&read),
            "client 3: read key 7 -> 5 at version 9 (1.000002..2.500000 s)"
        );
        let unknown = Event {
            action: Action::Delete { key: 7 },
            outcome: Outcome::Info("timed\nout".into()),
            ..read
        };
        assert_eq!(
            event(&unknown),
            "client 3: delete key 7 -> unknown, timed out (1.000002..2.500000 s)"
        );
    }

    #[test]
    fn long_lists_are_cut_short() {
        assert_eq!(some(&[1, 2, 3, 4, 5]), "1, 2, 3, 4, 5");
        assert_eq!(some(&[1, 2, 3, 4, 5, 6]), "1, 2, 3, 4, 5, ... (6 in all)");
        let many = first((0..25).map(|index| index.to_string()).collect());
        assert_eq!(
            (many.len(), many[20].as_str()),
            (21, "and 5 more findings of the same judge")
        );
    }
}
