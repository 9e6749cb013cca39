#!/usr/bin/env python3
"""What a dry run costs: processor seconds of the same script on the CPU alone and under `tonnage dry-run`.

    tools/dry_run_cost.py PYTHON TONNAGE [--runs 3]

The script trains `nn.Linear` blocks for some steps, on `cuda` where there is one, else on the CPU. Each case runs several times; the least
counts, for other programs of the machine can only add to it. One thread each, user and system time, children included.
"""
import argparse
import os
import resource
import subprocess
import sys
import tempfile

JOB = """
import resource, sys, torch
from torch import nn
width, layers, rows, words, steps = map(int, sys.argv[1:])
used = lambda: sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
place = "cuda" if torch.cuda.is_available() else "cpu"
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
    def forward(self, x):
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))
model = nn.Sequential(nn.Embedding(words, width), *[Block() for _ in range(layers)], nn.Linear(width, words)).to(place)
optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
begun = used()
for step in range(steps):
    ids = torch.randint(0, words, (rows, 128), device=place)
    loss = nn.functional.cross_entropy(model(ids).view(-1, words), ids.view(-1))
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
print(f"LOOP {place} {used() - begun:.3f}", file=sys.stderr)
"""
CASES = [
    ("import torch, no step", "16 1 1 16 0"),
    ("12 blocks of width 16, 1 row, 10 steps", "16 12 1 100 10"),
    ("12 blocks of width 16, 1 row, 200 steps", "16 12 1 100 200"),
    ("12 blocks of width 512, 4 rows, 10 steps", "512 12 4 8000 10"),
]


def seconds(command, env):
    """Processor seconds of a command, and of its loop."""
    child = "import resource,subprocess,sys; p=subprocess.run(sys.argv[1:],stdout=subprocess.DEVNULL); r=resource.getrusage(resource.RUSAGE_CHILDREN); print('ALL',r.ru_utime+r.ru_stime,p.returncode,file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", child, *command], env={**os.environ, **env}, stderr=subprocess.PIPE, text=True)
    lines = [line.split() for line in done.stderr.splitlines()]
    whole = next(x for x in lines if x[:1] == ["ALL"])
    if whole[2] != "0":
        sys.exit(done.stderr)
    return float(whole[1]), float(next(x for x in lines if x[:1] == ["LOOP"])[2])


def main():
    a = argparse.ArgumentParser(description=__doc__)
    a.add_argument("python")
    a.add_argument("tonnage")
    a.add_argument("--runs", type=int, default=3)
    a = a.parse_args()
    print("| script | on the CPU: all, steps | dry run: all, steps | ratio: all, steps |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        job = os.path.join(folder, "job.py")
        with open(job, "w", encoding="utf-8") as f:
            f.write(JOB)
        for name, args in CASES:
            cpu, dry = [], []
            for _ in range(a.runs):
                cpu.append(seconds([a.python, job, *args.split()], {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}))
                dry.append(seconds([a.tonnage, "dry-run", "--gpu", "a100-sxm4-80gb", "--", a.python, job, *args.split()], {"OMP_NUM_THREADS": "1"}))
            (ca, cl), (da, dl) = (tuple(map(min, zip(*x))) for x in (cpu, dry))
            ratio = f"{dl / cl:.2f}" if cl > 0.05 else "-"
            print(f"| {name} | {ca:.1f} s, {cl:.2f} s | {da:.1f} s, {dl:.2f} s | {da / ca:.2f}, {ratio} |", flush=True)


if __name__ == "__main__":
    main()
