#!/usr/bin/env python3
"""Records which 4-bit products bitsandbytes 0.50.2 runs without unpacking the weight: crates/tonnage-model/tests/gemm4.rs.

    tools/record_gemm4.py > crates/tonnage-model/tests/fixtures/gemm4.txt

It asks the library's own `_gemm_4bit_use_custom_cuda`; the library has to load (a GPU or a null CUDA device). A line: multiprocessors,
compute capability, dtype, N, K, then one hex number with a bit for each row count of ROWS (lowest first).
"""
import itertools
import torch
import bitsandbytes.backends.cuda.ops as ops

ROWS = [1, 4, 5, 6, 7, 8, 10, 12, 16, 20, 23, 32, 48, 64, 96, 128, 192, 256, 320, 384, 512, 768, 1024, 1536]
CARDS = [(108, 8, 0), (132, 9, 0), (82, 8, 6), (128, 8, 9), (58, 8, 9), (40, 7, 5), (148, 10, 0), (170, 12, 0), (48, 12, 1), (16, 8, 7), (80, 7, 0)]
SIZES = [256, 512, 1024, 1536, 2048, 3072, 4096, 6144, 8960, 11008, 14336, 28672]
for sms, major, minor in CARDS:
    ops._gpu_dispatch_props = lambda _, p=(sms, major, minor): p
    for name, n, k in itertools.product(("bf16", "fp16", "fp32"), SIZES, SIZES):
        if (name, n) != ("bf16", n) and (n, k) not in ((1024, 4096), (4096, 4096), (11008, 4096), (256, 1536)):
            continue
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[name]
        ops._gemm_4bit_use_custom_cuda.cache_clear()
        bits = sum(int(bool(ops._gemm_4bit_use_custom_cuda(0, dtype, m, n, k))) << i for i, m in enumerate(ROWS))
        print(sms, f"{major}.{minor}", name, n, k, f"{bits:x}")
