//! Tuple keys: packing, taking apart, and both ways as text. Throughput: keys.

mod common;

use std::hint::black_box;

use criterion::{Criterion, Throughput};
use reelkv_client::key;

fn main() {
    let mut criterion = common::criterion();
    tuples(&mut criterion);
    criterion.final_summary();
}

fn tuples(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("tuple_key");
    group.throughput(Throughput::Elements(1));
    let rental = ("rental", 16_049_i64, "2005-08-23 22:50:12", true);
    let packed = key::pack(&rental);
    let text = key::to_text(&packed);
    group.bench_function("pack", |bencher| bencher.iter(|| key::pack(black_box(&rental))));
    group.bench_function("unpack", |bencher| {
        bencher.iter(|| {
            key::unpack::<(String, i64, String, bool)>(black_box(&packed)).expect("it is that tuple")
        });
    });
    group.bench_function("to_text", |bencher| {
        bencher.iter(|| key::to_text(black_box(&packed)));
    });
    group.bench_function("from_text", |bencher| {
        bencher.iter(|| key::from_text(black_box(&text)).expect("it was written by to_text"));
    });
    group.finish();
}
