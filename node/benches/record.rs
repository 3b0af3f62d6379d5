//! The record codec: what every write, read and scrub pays per record. Throughput: encoded bytes.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput};
use reelkv::storage::StoredRecord;

mod common;

fn main() {
    let mut criterion = common::criterion();
    codec(&mut criterion);
    criterion.final_summary();
}

fn codec(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("record");
    for value_bytes in [64, common::VALUE_BYTES, 4 << 10, 64 << 10] {
        let record = StoredRecord {
            key: common::key(7),
            version: 41,
            value: Some(common::value(value_bytes)),
            client_crc: 0xfeed_beef,
            logged_time_ms: 1_218_412_800_123,
            expires_at_ms: 0,
        };
        let row = record.encode();
        group.throughput(Throughput::Bytes(row.len() as u64));
        group.bench_function(BenchmarkId::new("encode", value_bytes), |bencher| {
            bencher.iter(|| black_box(&record).encode());
        });
        group.bench_function(BenchmarkId::new("decode", value_bytes), |bencher| {
            bencher.iter(|| StoredRecord::decode(&record.key, black_box(&row)).expect("it is whole"));
        });
        if value_bytes == common::VALUE_BYTES {
            group.bench_function("digest", |bencher| bencher.iter(|| black_box(&record).digest()));
        }
    }
    group.finish();
}
