"""Records what the real caching allocator does with one random sequence of torch.empty / del of byte tensors."""
import torch, json, sys, random, gzip, os
out, seed, nops, fraction, scale = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]) or None, float(sys.argv[5])
conf = os.environ.get("PYTORCH_ALLOC_CONF", ""); limit = int(os.environ.get("NC_LIMIT", "0")) or None
r = random.Random(seed)
torch.cuda.init()
if fraction: torch.cuda.set_per_process_memory_fraction(fraction)
st = lambda: torch._C._cuda_memoryStats(0)
def size():
    k = r.random()
    if k < .25: n = r.randint(1, 4096)
    elif k < .40: n = r.randint(4096, 1 << 20)
    elif k < .45: n = r.choice([1 << 20, (1 << 20) + 1, 10 << 20, (10 << 20) - 1, 20 << 20, 512, 513, 64 << 20, (64 << 20) - 1])
    elif k < .75: n = r.randint(1 << 20, 10 << 20)
    else: n = int(2 ** r.uniform(23, 27.5) * scale)
    return n - n % 512 if r.random() < .5 and n > 512 else n
common = [size() for _ in range(12)]
live, ops, ooms, nid, base, want = {}, [], [], 0, None, 0
for i in range(nops):
    phase = (i // 80) % 3
    p = (.7, .35, .5)[phase]
    if i % 211 == 210:
        torch.cuda.empty_cache(); s = st(); ops.append(["e", s["allocated_bytes"]["all"]["current"], s["reserved_bytes"]["all"]["current"]]); continue
    if live and r.random() > p:
        k = r.choice(list(live)) if r.random() < .5 else max(live)
        del live[k]; s = st(); ops.append(["f", k, s["allocated_bytes"]["all"]["current"], s["reserved_bytes"]["all"]["current"]]); continue
    n = r.choice(common) if r.random() < .4 else size()
    try:
        t = torch.empty(n, dtype=torch.uint8, device="cuda"); a = t.data_ptr(); err = None
    except torch.OutOfMemoryError as e:
        t, a = None, None; ooms.append(str(e))
    s = st()
    if a is not None:
        if base is None: base = a
        live[nid] = t; a -= base
    del t
    ops.append(["a", nid, n, a, s["allocated_bytes"]["all"]["current"], s["reserved_bytes"]["all"]["current"]]); nid += 1
s = torch.cuda.memory_stats()
keep = {k: v for k, v in s.items() if k.split(".")[0] in ("allocated_bytes", "reserved_bytes", "requested_bytes", "active_bytes", "segment", "allocation", "inactive_split_bytes", "inactive_split", "oversize_allocations", "oversize_segments") and k.split(".")[-1] in ("current", "peak") and (".all." in k or k.startswith("oversize") or (k.startswith("inactive") or k.startswith("reserved")) and k.endswith("current")) or k.startswith("num_")}
segs = [[x["address"] - base, x["total_size"], x["segment_type"], x["is_expandable"], [[b["size"], b["state"] == "active_allocated", b["requested_size"]] for b in x["blocks"]]] for x in torch.cuda.memory._snapshot()["segments"]]
j = dict(conf=conf, total=torch.cuda.mem_get_info()[1], limit=limit, fraction=fraction, torch=torch.__version__, ops=ops, stats=keep, segments=segs, ooms=ooms)
open(out, "w").write(json.dumps(j, separators=(",", ":")))
print(os.path.basename(out), len(ops), "ooms", len(ooms), "retries", s["num_alloc_retries"], "dev", s["num_device_alloc"], s["num_device_free"], "segs", len(segs), "oversize", s["oversize_segments.peak"], "peak", s["reserved_bytes.all.peak"]>>20)
