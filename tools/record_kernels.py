#!/usr/bin/env python3
"""Records what single CUDA operators of PyTorch allocate: the data of crates/tonnage-sim/tests/kernels.rs.

    tools/record_kernels.py [--out FOLDER] [--gpus a100,h100,...] [GROUP ...]

It runs real PyTorch 2.11 on a null CUDA device (a preloaded library that stands in for the CUDA runtime and
answers as the GPU named by NULLCUDA_GPU; set LD_PRELOAD and LD_LIBRARY_PATH for it before you start this) or on a
real GPU (then give --gpus one name, for the record). Each case is one call; its allocations and frees are taken
from the caching allocator's own history. A file GROUP.jsonl has one case a line:

    [operator, {arguments}, trace]      trace = text, or {gpus: text} where the GPUs differ

A trace is a list of: "oI" result I is allocated, "+N:BYTES" temporary N is allocated, "-N" it is freed. A result
is an allocation whose storage belongs to the I-th returned tensor; results without storage of their own are absent.
"""
import argparse, json, os, subprocess, sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
GPUS = ["a100", "h100", "h200", "rtx4090", "rtx3090", "t4"]


class Recorder:
    """Collects cases: each runs under its number as allocator metadata; one snapshot at the end has all events."""

    def __init__(self):
        import torch

        self.torch, self.cases = torch, []
        torch.cuda.init()
        a = torch.empty(64, 64, device="cuda")
        torch.mm(a, a)  # the cuBLAS workspace of this thread
        torch.addmm(a[0], a, a)  # and cuBLASLt's
        torch.nn.functional.linear(a.half(), a.half())
        torch.cuda.memory._record_memory_history(enabled="all", context=None, max_entries=50_000_000)
        torch._C._cuda_setMemoryMetadata("")

    def case(self, op, args, call):
        """Runs `call` once; the tensors that it returns are its results."""
        torch = self.torch
        torch._C._cuda_setMemoryMetadata(str(len(self.cases)))
        out = call()
        torch._C._cuda_setMemoryMetadata("")
        outs = [out] if isinstance(out, torch.Tensor) else list(out or ())
        own = [t.untyped_storage().data_ptr() if isinstance(t, torch.Tensor) and t.is_cuda else 0 for t in outs]
        self.cases.append((op, args, own))

    def rows(self):
        events = [[] for _ in self.cases]
        for e in self.torch.cuda.memory._snapshot()["device_traces"][0]:
            if e.get("user_metadata") and e["action"] in ("alloc", "free_completed"):
                events[int(e["user_metadata"])].append(e)
        for (op, args, own), es in zip(self.cases, events):
            last = {e["addr"]: k for k, e in enumerate(es) if e["action"] == "alloc"}
            freed = {e["addr"]: k for k, e in enumerate(es) if e["action"] != "alloc"}
            words, live, n = [], {}, 0
            for k, e in enumerate(es):
                p = e["addr"]
                if e["action"] != "alloc":
                    words.append(f"-{live.pop(p, '?')}")
                elif p in own and last[p] == k and freed.get(p, -1) < k:
                    words.append(f"o{own.index(p)}")
                else:
                    words.append(f"+{n}:{e['size']}")
                    live[p] = n
                    n += 1
            yield [op, args, " ".join(words)]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", default="crates/tonnage-sim/tests/fixtures/kernels")
    p.add_argument("--gpus", default=",".join(GPUS))
    p.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    p.add_argument("groups", nargs="*")
    a = p.parse_args()
    import record_kernels_cases as cases

    if a.child:
        rec = Recorder()
        cases.GROUPS[a.groups[0]](rec)
        for row in rec.rows():
            print(json.dumps(row, separators=(",", ":")))
        return
    for group in a.groups or cases.GROUPS:
        merged = {}
        for gpu in a.gpus.split(","):
            env = dict(os.environ, NULLCUDA_GPU=gpu)
            out = subprocess.run([sys.executable, __file__, "--child", group], env=env, check=True, capture_output=True, text=True).stdout
            for line in out.splitlines():
                op, args, trace = json.loads(line)
                merged.setdefault(json.dumps([op, args]), {})[gpu] = trace
        with open(os.path.join(a.out, group + ".jsonl"), "w") as f:
            for key, traces in merged.items():
                op, args = json.loads(key)
                by_text = {}
                for gpu, text in traces.items():
                    by_text.setdefault(text, []).append(gpu)
                same = len(by_text) == 1 and len(traces) == len(a.gpus.split(","))
                value = next(iter(by_text)) if same else {" ".join(g): t for t, g in by_text.items()}
                f.write(json.dumps([op, args, value], separators=(",", ":")) + "\n")
        print(group, len(merged), "cases")


if __name__ == "__main__":
    main()
