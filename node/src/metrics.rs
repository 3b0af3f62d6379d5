//! Counters and times of requests, kept as they happen; everything else on `/metrics` is read
//! from the node when it is asked (`server::page`).

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use reelkv_proto::v1::error::Kind;
use reelkv_proto::v1::request::Op;
use reelkv_proto::v1::response;

const OPS: [&str; 7] = ["get", "put", "delete", "add", "batch", "scan", "open_incarnation"];
const RESULTS: [&str; 15] = [
    "ok",
    "not_leader",
    "epoch_not_match",
    "key_not_in_shard",
    "busy",
    "outcome_unknown",
    "integrity",
    "token_expired",
    "invalid_argument",
    "condition_failed",
    "unknown_keyspace",
    "unavailable",
    "already_exists",
    "internal",
    "empty",
];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    op: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OpLabel {
    op: &'static str,
}

/// Requests of clients, by what they asked and how they ended. Cheap to note: every label has its
/// counter made in advance.
#[derive(Debug)]
pub struct RequestMetrics {
    counts: Family<Labels, Counter>,
    times: Family<OpLabel, Histogram>,
    count_of: Vec<[Counter; RESULTS.len()]>,
    time_of: Vec<Histogram>,
}

impl Default for RequestMetrics {
    fn default() -> Self {
        let counts = Family::<Labels, Counter>::default();
        let times = Family::<OpLabel, Histogram>::new_with_constructor(|| {
            // 100 µs to 13 s.
            Histogram::new(exponential_buckets(0.000_1, 2.2, 16))
        });
        let count_of = OPS.map(|op| RESULTS.map(|result| counts.get_or_create_owned(&Labels { op, result })));
        let time_of = OPS.map(|op| times.get_or_create_owned(&OpLabel { op }));
        Self {
            counts,
            times,
            count_of: count_of.into(),
            time_of: time_of.into(),
        }
    }
}

/// The place of an operation in the tables.
pub fn op_index(op: Option<&Op>) -> Option<usize> {
    Some(match op? {
        Op::Get(_) => 0,
        Op::Put(_) => 1,
        Op::Delete(_) => 2,
        Op::Add(_) => 3,
        Op::Batch(_) => 4,
        Op::Scan(_) => 5,
        Op::OpenIncarnation(_) => 6,
    })
}

fn result_index(result: Option<&response::Result>) -> usize {
    let Some(response::Result::Error(error)) = result else {
        return if result.is_some() { 0 } else { 14 };
    };
    match error.kind {
        Some(Kind::NotLeader(_)) => 1,
        Some(Kind::EpochNotMatch(_)) => 2,
        Some(Kind::KeyNotInShard(_)) => 3,
        Some(Kind::Busy(_)) => 4,
        Some(Kind::OutcomeUnknown(_)) => 5,
        Some(Kind::Integrity(_)) => 6,
        Some(Kind::TokenExpired(_)) => 7,
        Some(Kind::InvalidArgument(_)) => 8,
        Some(Kind::ConditionFailed(_)) => 9,
        Some(Kind::UnknownKeyspace(_)) => 10,
        Some(Kind::Unavailable(_)) => 11,
        Some(Kind::AlreadyExists(_)) => 12,
        Some(Kind::Internal(_)) | None => 13,
    }
}

impl RequestMetrics {
    /// Notes one request: `op` is its [`op_index`].
    pub fn observe(&self, op: usize, result: Option<&response::Result>, elapsed: Duration) {
        self.count_of[op][result_index(result)].inc();
        self.time_of[op].observe(elapsed.as_secs_f64());
    }

    /// Adds its families to a page.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "reelkv_requests",
            "Requests of clients answered",
            self.counts.clone(),
        );
        registry.register_with_unit(
            "reelkv_request",
            "Time from receipt of a request to its answer",
            Unit::Seconds,
            self.times.clone(),
        );
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;
    use reelkv_proto::v1;

    use super::*;
    use crate::error;

    #[test]
    fn requests_are_counted_by_operation_and_result() {
        let metrics = RequestMetrics::default();
        let get = op_index(Some(&Op::Get(v1::GetRequest::default()))).unwrap();
        let found = response::Result::Get(v1::GetResponse::default());
        metrics.observe(get, Some(&found), Duration::from_millis(3));
        metrics.observe(get, Some(&found), Duration::from_millis(3));
        metrics.observe(
            get,
            Some(&response::Result::Error(error::busy(1, "full"))),
            Duration::from_secs(1),
        );
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for line in [
            r#"reelkv_requests_total{op="get",result="ok"} 2"#,
            r#"reelkv_requests_total{op="get",result="busy"} 1"#,
            r#"reelkv_requests_total{op="put",result="ok"} 0"#,
            r#"reelkv_request_seconds_count{op="get"} 3"#,
            "# TYPE reelkv_request_seconds histogram",
            "# UNIT reelkv_request_seconds seconds",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }

    #[test]
    fn every_error_has_a_result_of_its_own() {
        let errors = [
            error::not_leader(1, 0, ""),
            error::epoch_not_match(Vec::new()),
            error::key_not_in_shard(1, bytes::Bytes::new()),
            error::busy(1, ""),
            error::outcome_unknown(""),
            error::integrity("tree"),
            error::token_expired(1),
            error::invalid("key", ""),
            error::condition_failed(1),
            error::unknown_keyspace("", 1),
            error::unavailable(""),
            error::already_exists(""),
            error::internal(""),
        ];
        let found: Vec<_> = errors
            .map(|error| RESULTS[result_index(Some(&response::Result::Error(error)))])
            .into();
        assert_eq!(found, RESULTS[1..14]);
    }
}
