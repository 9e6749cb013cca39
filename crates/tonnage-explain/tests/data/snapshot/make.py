"""Makes the snapshots of this folder: two of one small training run (with a list that keeps a tensor a step), PyTorch's own statistics
of the same moments, and the addresses of parameters, optimizer states and the kept tensors. torch 2.11.

    python make.py
"""
import gzip, json, os, pickle
import torch
import torch.nn as nn

torch.cuda.memory._record_memory_history(max_entries=100000, stacks="python")
NAME = "plain"


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(3000, 256)
        self.up = nn.ModuleList([nn.Linear(256, 1024) for _ in range(3)])
        self.down = nn.ModuleList([nn.Linear(1024, 256) for _ in range(3)])
        self.head = nn.Linear(256, 3000)

    def forward(self, x):
        h = self.emb(x)
        for up, down in zip(self.up, self.down):
            h = h + down(nn.functional.gelu(up(h)))
        return self.head(h)


def step(model, optimizer, kept):
    x = torch.zeros(8, 128, dtype=torch.long, device="cuda")
    loss = model(x).float().pow(2).mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    kept.append(torch.empty(3 * 2**20 // 4, device="cuda"))


model = Net().cuda()
optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
kept = []


def clean(o, seen):
    """Paths without the machine's folders."""
    if id(o) in seen:
        return
    seen.add(id(o))
    if isinstance(o, dict):
        f = o.get("filename")
        if isinstance(f, str):
            o["filename"] = f.split("/lib/python3.11/")[-1] if "/lib/python3.11/" in f else "/".join(f.split("/")[-1:]).replace("make.py", "train.py")
        for v in o.values():
            clean(v, seen)
    elif isinstance(o, (list, tuple)):
        for v in o:
            clean(v, seen)


def write(name):
    torch.cuda.memory._dump_snapshot("x.pickle")
    with open("x.pickle", "rb") as f:
        s = pickle.load(f)
    os.remove("x.pickle")
    clean(s, set())
    protocols = (2, 3, 4, 5) if name == "plain-b" else (4,)
    for p in protocols:
        with gzip.GzipFile(f"{name}.p{p}.pickle.gz", "wb", 9, mtime=0) as f:
            f.write(pickle.dumps(s, p))
    if name == "plain-b":
        with gzip.GzipFile(f"{name}.json.gz", "wb", 9, mtime=0) as f:
            f.write(json.dumps(s).encode())
    return {k: v for k, v in torch.cuda.memory_stats().items() if "bytes" in k and not k.startswith("oversize")}


def addresses():
    def of(tensors):
        return sorted({t.untyped_storage().data_ptr() for t in tensors if t.is_cuda})
    states = [v for s in optimizer.state.values() for v in s.values() if torch.is_tensor(v)]
    return {"parameters": of(model.parameters()), "optimizer_state": of(states), "other": of(kept)}


for _ in range(2):
    step(model, optimizer, kept)
out = {"torch": torch.__version__, "a": write(f"{NAME}-a")}
for _ in range(3):
    step(model, optimizer, kept)
out["b"] = write(f"{NAME}-b")
out["addresses"] = addresses()
with open(f"{NAME}.stats.json", "w") as f:
    json.dump(out, f, indent=0)
