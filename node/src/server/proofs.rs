//! What the voters of a shard can prove, all together: how old the oldest proof is, and which spans
//! of keys fewer than two of them can prove. Pure: computed from what the nodes report.

use std::collections::BTreeSet;

use bytes::Bytes;
use reelkv_proto::types::KeyRange;
use reelkv_proto::v1;

/// Most spans told of one shard.
const SPANS_MAX: usize = 64;
/// As many copies must be proven, if there are so many.
const COPIES_WANTED: u32 = 2;

/// What is proven of a shard.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ShardProofs {
    /// Age of the oldest proof, in milliseconds; 0: something was never proven.
    pub oldest_ms: u64,
    /// In key order, those that touch united.
    pub spans_under_two_copies: Vec<v1::UnprovenSpan>,
}

/// What the voters that answer and are trusted say; `None` while none of them reports proofs.
pub(super) fn of_shard<'r>(
    shard: &v1::ShardDescriptor,
    voters: impl Iterator<Item = &'r v1::ReplicaStatus>,
    replicas: u32,
) -> Option<ShardProofs> {
    let reporting: Vec<_> = voters.filter(|voter| voter.oldest_proof_ms.is_some()).collect();
    let ages = || reporting.iter().filter_map(|voter| voter.oldest_proof_ms);
    // Never is older than any age.
    let oldest_ms = ages().reduce(|a, b| if a == 0 || b == 0 { 0 } else { a.max(b) })?;
    let range = KeyRange::of(shard);
    let unproven: Vec<Vec<KeyRange>> = reporting.iter().map(|voter| unproven(voter, &range)).collect();
    let wanted = COPIES_WANTED.min(replicas.max(1)) as usize;
    let mut thin: Vec<v1::UnprovenSpan> = Vec::new();
    for piece in pieces(&range, unproven.iter().flatten()) {
        let proven = unproven
            .iter()
            .filter(|spans| !spans.iter().any(|span| span.contains(&piece.start)))
            .count();
        if proven >= wanted {
            continue;
        }
        let reason = reason(&reporting, &piece, proven);
        match thin.last_mut() {
            Some(last) if last.end_key == piece.start && last.reason == reason => last.end_key = piece.end,
            _ => thin.push(v1::UnprovenSpan {
                start_key: piece.start,
                end_key: piece.end,
                reason,
            }),
        }
    }
    thin.truncate(SPANS_MAX);
    Some(ShardProofs {
        oldest_ms,
        spans_under_two_copies: thin,
    })
}

/// What a replica cannot prove of a range.
fn unproven(replica: &v1::ReplicaStatus, range: &KeyRange) -> Vec<KeyRange> {
    let spans = replica.unproven_spans.iter();
    let named: Vec<_> = spans
        .filter_map(|span| span_range(span).intersect(range))
        .collect();
    match (replica.oldest_proof_ms, named.is_empty()) {
        // Something was never proven, and it does not say what.
        (Some(0), true) => vec![range.clone()],
        _ => named,
    }
}

fn span_range(span: &v1::UnprovenSpan) -> KeyRange {
    KeyRange::new(span.start_key.clone(), span.end_key.clone())
}

/// A range cut wherever one of the spans begins or ends.
fn pieces<'s>(range: &KeyRange, spans: impl Iterator<Item = &'s KeyRange>) -> Vec<KeyRange> {
    let edges = spans.flat_map(|span| [span.start.clone(), span.end.clone()]);
    let mut cuts: BTreeSet<Bytes> = edges.filter(|key| range.contains(key)).collect();
    cuts.insert(range.start.clone());
    let starts: Vec<Bytes> = cuts.into_iter().collect();
    let ends = starts[1..].iter().cloned().chain([range.end.clone()]);
    let pieces = starts.iter().cloned().zip(ends);
    pieces.map(|(start, end)| KeyRange::new(start, end)).collect()
}

/// How many copies are proven, and why not more: what the replicas say, each thing once.
fn reason(reporting: &[&v1::ReplicaStatus], piece: &KeyRange, proven: usize) -> String {
    let spans = reporting.iter().flat_map(|replica| &replica.unproven_spans);
    let here = spans.filter(|span| span_range(span).contains(&piece.start));
    let reasons: BTreeSet<&str> = here
        .map(|span| span.reason.as_str())
        .filter(|reason| !reason.is_empty())
        .collect();
    let copies = match proven {
        1 => "1 proven copy".to_owned(),
        _ => format!("{proven} proven copies"),
    };
    match reasons.is_empty() {
        true => copies,
        false => format!("{copies}: {}", Vec::from_iter(reasons).join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard() -> v1::ShardDescriptor {
        v1::ShardDescriptor {
            start_key: "b".into(),
            end_key: "y".into(),
            ..Default::default()
        }
    }

    fn voter(oldest_proof_ms: Option<u64>, unproven: &[(&str, &str)]) -> v1::ReplicaStatus {
        let span = |(start, end): &(&str, &str)| v1::UnprovenSpan {
            start_key: start.to_string().into(),
            end_key: end.to_string().into(),
            reason: "damaged".to_owned(),
        };
        v1::ReplicaStatus {
            oldest_proof_ms,
            unproven_spans: unproven.iter().map(span).collect(),
            ..Default::default()
        }
    }

    fn found(voters: &[v1::ReplicaStatus], replicas: u32) -> Option<(u64, Vec<(String, String)>)> {
        let proofs = of_shard(&shard(), voters.iter(), replicas)?;
        let text = |key: &Bytes| String::from_utf8_lossy(key).into_owned();
        let spans = proofs.spans_under_two_copies.iter();
        let spans = spans.map(|span| (text(&span.start_key), text(&span.end_key)));
        Some((proofs.oldest_ms, spans.collect()))
    }

    fn spans(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        let owned = |(start, end): &(&str, &str)| (start.to_string(), end.to_string());
        expected.iter().map(owned).collect()
    }

    #[test]
    fn nothing_is_said_while_no_voter_reports() {
        assert_eq!(found(&[], 3), None);
        assert_eq!(found(&[voter(None, &[]), voter(None, &[])], 3), None);
    }

    #[test]
    fn the_oldest_proof_is_the_one_that_counts_and_never_is_older_than_any() {
        let three = [voter(Some(5), &[]), voter(Some(9), &[]), voter(Some(7), &[])];
        assert_eq!(found(&three, 3), Some((9, vec![])));
        let fresh = [
            voter(Some(5), &[]),
            voter(Some(5), &[]),
            voter(Some(0), &[("c", "d")]),
        ];
        assert_eq!(found(&fresh, 3), Some((0, vec![])));
    }

    #[test]
    fn a_span_that_two_of_three_cannot_prove_is_thin_and_only_that() {
        let three = [
            voter(Some(1), &[("a", "h")]),
            voter(Some(1), &[("f", "m")]),
            voter(Some(1), &[("x", "z")]),
        ];
        assert_eq!(found(&three, 3), Some((1, spans(&[("f", "h")]))));
        let one_away = &three[..2];
        let thin = spans(&[("b", "f"), ("f", "h"), ("h", "m")]);
        assert_eq!(
            found(one_away, 3),
            Some((1, thin)),
            "cut where the number of copies changes"
        );
    }

    #[test]
    fn who_does_not_report_and_who_has_proven_nothing_proves_nothing() {
        let all = Some((1, spans(&[("b", "y")])));
        assert_eq!(found(&[voter(Some(1), &[]), voter(None, &[])], 3), all);
        let never = [voter(Some(1), &[]), voter(Some(0), &[])];
        assert_eq!(found(&never, 3), Some((0, spans(&[("b", "y")]))));
    }

    #[test]
    fn where_a_shard_has_one_replica_one_proof_is_enough() {
        assert_eq!(found(&[voter(Some(1), &[])], 1), Some((1, vec![])));
        let damaged = [voter(Some(1), &[("c", "d")])];
        assert_eq!(found(&damaged, 1), Some((1, spans(&[("c", "d")]))));
    }

    #[test]
    fn a_span_without_an_end_goes_to_the_end_of_the_shard() {
        let two = [voter(Some(1), &[("x", "")]), voter(Some(1), &[])];
        assert_eq!(found(&two, 3), Some((1, spans(&[("x", "y")]))));
    }

    #[test]
    fn the_reason_says_how_many_copies_there_are_and_why() {
        let two = [voter(Some(1), &[("c", "d")]), voter(Some(1), &[])];
        let proofs = of_shard(&shard(), two.iter(), 3).unwrap();
        assert_eq!(proofs.spans_under_two_copies[0].reason, "1 proven copy: damaged");
    }
}
