//! Replays a recorded job through the allocator: nanoseconds an event.

#[path = "../tests/common/mod.rs"]
mod common;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use tonnage_sim::alloc::{AllocatorConfig, CachingAllocator, Capacity, replay};

fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("replay");
    for id in [
        "llama-1b-plain-bf16-adamw_foreach-b2-s1024",
        "nano-124m-plain-amp_bf16-adamw_fused-b12-s1024-ga4-clip",
    ] {
        let trace = common::trace(id);
        group.throughput(Throughput::Elements(trace.events.len() as u64));
        let cases = [
            ("default", "", None),
            (
                "capacity",
                "",
                Some(Capacity {
                    total: 80 << 30,
                    free: 79 << 30,
                }),
            ),
            ("expandable", "expandable_segments:True", None),
            ("split-64", "max_split_size_mb:64", None),
        ];
        for (name, settings, capacity) in cases {
            let mut alloc =
                CachingAllocator::new(AllocatorConfig::parse(settings).unwrap(), capacity);
            group.bench_function(BenchmarkId::new(name, &id[..8]), |b| {
                b.iter(|| {
                    alloc.reset();
                    black_box(replay(&trace.events, &[], &mut alloc).unwrap())
                })
            });
        }
        group.bench_function(BenchmarkId::new("new", &id[..8]), |b| {
            b.iter(|| {
                let mut alloc = CachingAllocator::new(AllocatorConfig::default(), None);
                black_box(replay(&trace.events, &[], &mut alloc).unwrap())
            })
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
