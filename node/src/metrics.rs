//! Requests of clients, counted as they end; everything else on `/metrics` is read from the node
//! when it is asked (`server::page`).
//!
//! Families, in the OpenMetrics text format:
//! - `reelkv_requests_total{op,result}`: how many ended how; `result` is `ok` or the error's kind.
//! - `reelkv_request_seconds{op}`: from receipt to answer.
//! - `reelkv_checkpoints_total`, `reelkv_wal_segments_removed_total`: counted where they happen ([`Upkeep`]).
//!
//! Every series exists from the start, at 0, so that the first error is seen as an increase.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::registry::{Registry, Unit};
use reelkv_proto::v1::error::Kind;
use reelkv_proto::v1::{self, request, response};

/// What a request asks: the label `op`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the requests of `kv.proto`
pub enum Op {
    Get,
    Put,
    Delete,
    Add,
    Batch,
    Scan,
    OpenIncarnation,
    /// Nothing this release knows.
    None,
}

impl Op {
    const NAMES: [&str; 8] = [
        "get",
        "put",
        "delete",
        "add",
        "batch",
        "scan",
        "open_incarnation",
        "none",
    ];

    /// What `request` asks.
    pub fn of(request: &v1::Request) -> Self {
        match request.op {
            Some(request::Op::Get(_)) => Self::Get,
            Some(request::Op::Put(_)) => Self::Put,
            Some(request::Op::Delete(_)) => Self::Delete,
            Some(request::Op::Add(_)) => Self::Add,
            Some(request::Op::Batch(_)) => Self::Batch,
            Some(request::Op::Scan(_)) => Self::Scan,
            Some(request::Op::OpenIncarnation(_)) => Self::OpenIncarnation,
            None => Self::None,
        }
    }
}

/// How a request ended: the label `result`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the kinds of `error.proto`
pub enum Outcome {
    Ok,
    NotLeader,
    EpochNotMatch,
    KeyNotInShard,
    Busy,
    OutcomeUnknown,
    Integrity,
    TokenExpired,
    InvalidArgument,
    ConditionFailed,
    UnknownKeyspace,
    Unavailable,
    AlreadyExists,
    /// Also an answer that says nothing, which is the server's own fault too.
    Internal,
}

impl Outcome {
    const NAMES: [&str; 14] = [
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
    ];

    /// How the request that got `response` ended.
    pub fn of(response: &v1::Response) -> Self {
        let error = match &response.result {
            Some(response::Result::Error(error)) => error,
            Some(_) => return Self::Ok,
            None => return Self::Internal,
        };
        match error.kind {
            Some(Kind::NotLeader(_)) => Self::NotLeader,
            Some(Kind::EpochNotMatch(_)) => Self::EpochNotMatch,
            Some(Kind::KeyNotInShard(_)) => Self::KeyNotInShard,
            Some(Kind::Busy(_)) => Self::Busy,
            Some(Kind::OutcomeUnknown(_)) => Self::OutcomeUnknown,
            Some(Kind::Integrity(_)) => Self::Integrity,
            Some(Kind::TokenExpired(_)) => Self::TokenExpired,
            Some(Kind::InvalidArgument(_)) => Self::InvalidArgument,
            Some(Kind::ConditionFailed(_)) => Self::ConditionFailed,
            Some(Kind::UnknownKeyspace(_)) => Self::UnknownKeyspace,
            Some(Kind::Unavailable(_)) => Self::Unavailable,
            Some(Kind::AlreadyExists(_)) => Self::AlreadyExists,
            Some(Kind::Internal(_)) | None => Self::Internal,
        }
    }
}

/// Upper bounds of the histogram's buckets, in microseconds: 100 µs to 10 s. One more is open.
const BOUNDS_US: [u64; 16] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000,
];

/// What is kept of one operation. The library's own histogram takes a lock per observation;
/// this one only adds.
#[derive(Debug, Default)]
struct OpMetrics {
    results: [AtomicU64; Outcome::NAMES.len()],
    /// Each request is in exactly one.
    buckets: [AtomicU64; BOUNDS_US.len() + 1],
    sum_ns: AtomicU64,
}

/// What a node did besides answering, since the process started.
#[derive(Clone, Copy, Debug, Default)]
pub struct Upkeep {
    /// Trees that were made durable and put on record.
    pub checkpoints: u64,
    /// Segments of the log that were deleted, as trees hold what was in them.
    pub wal_segments_removed: u64,
}

impl Collector for Upkeep {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let counters = [
            (
                "reelkv_checkpoints",
                "Checkpoints of trees since the process started",
                self.checkpoints,
            ),
            (
                "reelkv_wal_segments_removed",
                "Segments of the log deleted since the process started",
                self.wal_segments_removed,
            ),
        ];
        for (name, help, count) in counters {
            ConstCounter::new(count).encode(encoder.encode_descriptor(
                name,
                help,
                None,
                MetricType::Counter,
            )?)?;
        }
        Ok(())
    }
}

/// The node's request metrics. To observe is three additions: no lock, no allocation.
#[derive(Debug, Default)]
pub struct RequestMetrics {
    ops: [OpMetrics; Op::NAMES.len()],
}

impl RequestMetrics {
    /// Notes one request that ended.
    pub fn observe(&self, op: Op, result: Outcome, elapsed: Duration) {
        let op = &self.ops[op as usize];
        let bucket = BOUNDS_US.partition_point(|bound| Duration::from_micros(*bound) < elapsed);
        op.results[result as usize].fetch_add(1, Ordering::Relaxed);
        op.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        op.sum_ns.fetch_add(elapsed.as_nanos() as u64, Ordering::Relaxed);
    }

    /// Puts both families on a page.
    pub fn register(self: &Arc<Self>, registry: &mut Registry) {
        registry.register_collector(Box::new(self.clone()));
    }
}

impl Collector for RequestMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let help = "Requests of clients that were answered";
        let mut family = encoder.encode_descriptor("reelkv_requests", help, None, MetricType::Counter)?;
        for (op, name) in self.ops.iter().zip(Op::NAMES) {
            for (count, result) in op.results.iter().zip(Outcome::NAMES) {
                let labels = [("op", name), ("result", result)];
                let count = ConstCounter::new(count.load(Ordering::Relaxed));
                count.encode(family.encode_family(&labels)?)?;
            }
        }
        let help = "Time from receipt of a request to its answer";
        let unit = Some(&Unit::Seconds);
        let mut family = encoder.encode_descriptor("reelkv_request", help, unit, MetricType::Histogram)?;
        // The encoder adds the buckets up itself.
        let bounds = BOUNDS_US
            .map(|bound| bound as f64 / 1e6)
            .into_iter()
            .chain([f64::INFINITY]);
        for (op, name) in self.ops.iter().zip(Op::NAMES) {
            let counts = op.buckets.iter().map(|count| count.load(Ordering::Relaxed));
            let buckets: Vec<_> = bounds.clone().zip(counts).collect();
            let count = buckets.iter().map(|(_, count)| count).sum();
            let sum = op.sum_ns.load(Ordering::Relaxed) as f64 / 1e9;
            family
                .encode_family(&[("op", name)])?
                .encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;

    use super::*;
    use crate::error;

    fn page(metrics: &Arc<RequestMetrics>) -> String {
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        text
    }

    #[test]
    fn upkeep_is_two_counters() {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Upkeep {
            checkpoints: 3,
            wal_segments_removed: 2,
        }));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        assert_lines(
            &text,
            &[
                "reelkv_checkpoints_total 3",
                "reelkv_wal_segments_removed_total 2",
            ],
        );
    }

    #[track_caller]
    fn assert_lines(text: &str, lines: &[&str]) {
        for line in lines {
            assert!(text.lines().any(|found| found == *line), "no line {line}\n{text}");
        }
    }

    #[test]
    fn each_request_is_counted_once_by_operation_result_and_time() {
        let metrics = Arc::new(RequestMetrics::default());
        metrics.observe(Op::Get, Outcome::Ok, Duration::from_micros(100));
        metrics.observe(Op::Get, Outcome::Ok, Duration::from_micros(101));
        metrics.observe(Op::Get, Outcome::Busy, Duration::from_millis(1_500));
        metrics.observe(Op::Put, Outcome::OutcomeUnknown, Duration::from_secs(11));
        let lines = [
            "# HELP reelkv_requests Requests of clients that were answered",
            "# TYPE reelkv_requests counter",
            r#"reelkv_requests_total{op="get",result="ok"} 2"#,
            r#"reelkv_requests_total{op="get",result="busy"} 1"#,
            r#"reelkv_requests_total{op="put",result="outcome_unknown"} 1"#,
            r#"reelkv_requests_total{op="none",result="internal"} 0"#,
            "# HELP reelkv_request_seconds Time from receipt of a request to its answer",
            "# TYPE reelkv_request_seconds histogram",
            "# UNIT reelkv_request_seconds seconds",
            // A bound belongs to its bucket.
            r#"reelkv_request_seconds_bucket{le="0.0001",op="get"} 1"#,
            r#"reelkv_request_seconds_bucket{le="0.00025",op="get"} 2"#,
            r#"reelkv_request_seconds_bucket{le="1.0",op="get"} 2"#,
            r#"reelkv_request_seconds_bucket{le="2.5",op="get"} 3"#,
            r#"reelkv_request_seconds_bucket{le="+Inf",op="get"} 3"#,
            r#"reelkv_request_seconds_sum{op="get"} 1.500201"#,
            r#"reelkv_request_seconds_count{op="get"} 3"#,
            r#"reelkv_request_seconds_bucket{le="10.0",op="put"} 0"#,
            r#"reelkv_request_seconds_bucket{le="+Inf",op="put"} 1"#,
        ];
        assert_lines(&page(&metrics), &lines);
    }

    #[test]
    fn every_error_has_a_result_of_its_own_and_an_empty_answer_is_internal() {
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
        let answer = |result| Outcome::of(&v1::Response { id: 1, result });
        let found = errors.map(|error| Outcome::NAMES[answer(Some(response::Result::Error(error))) as usize]);
        assert_eq!(found[..], Outcome::NAMES[1..]);
        assert_eq!(
            answer(Some(response::Result::Get(v1::GetResponse::default()))),
            Outcome::Ok
        );
        assert_eq!(answer(None), Outcome::Internal);
    }

    #[test]
    fn every_operation_has_a_name_of_its_own() {
        let ops = [
            request::Op::Get(v1::GetRequest::default()),
            request::Op::Put(v1::PutRequest::default()),
            request::Op::Delete(v1::DeleteRequest::default()),
            request::Op::Add(v1::AddRequest::default()),
            request::Op::Batch(v1::BatchRequest::default()),
            request::Op::Scan(v1::ScanRequest::default()),
            request::Op::OpenIncarnation(v1::OpenIncarnationRequest::default()),
        ];
        let name = |op| {
            Op::NAMES[Op::of(&v1::Request {
                op,
                ..Default::default()
            }) as usize]
        };
        assert_eq!(ops.map(|op| name(Some(op)))[..], Op::NAMES[..7]);
        assert_eq!(name(None), "none");
    }

    #[test]
    fn nothing_is_lost_between_threads() {
        let metrics = Arc::new(RequestMetrics::default());
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(4)
            .build()
            .unwrap();
        runtime.block_on(async {
            let observing = (0..4).map(|_| {
                let metrics = metrics.clone();
                tokio::spawn(async move {
                    for _ in 0..10_000 {
                        metrics.observe(Op::Scan, Outcome::Ok, Duration::from_millis(1));
                    }
                })
            });
            futures::future::try_join_all(observing).await.unwrap();
        });
        let lines = [
            r#"reelkv_requests_total{op="scan",result="ok"} 40000"#,
            r#"reelkv_request_seconds_count{op="scan"} 40000"#,
            r#"reelkv_request_seconds_sum{op="scan"} 40.0"#,
        ];
        assert_lines(&page(&metrics), &lines);
    }
}
