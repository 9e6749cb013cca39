"""Takes the allocator's history over and writes it: from time to time, where memory runs out, and at the end."""
import gc
import json
import os
import signal
import sys
import threading
import time

from tonnage_state import FORMAT, HERE, MAX_FRAMES, OUT, S, allocations, mark, note, note_peaks, stats
from tonnage_tags import tag_all

SHORT = dict(alloc="a", free_requested="q", free_completed="c", segment_alloc="S", segment_free="s", segment_map="P", segment_unmap="p", oom="o")
# what one allocation costs to take over and write, with its free events: seconds, on a slow machine
COST = 2e-5


class Body:
    """One device's events as lines. Frames, stacks and remarks are written once, where they first occur."""

    def __init__(self):
        self.stacks, self.frames, self.metas = {(): 0}, {}, {"": 0}
        self.text = ['["K",[]]\n["M",""]\n']

    def copy(self):
        other = Body()
        other.stacks, other.frames, other.metas = dict(self.stacks), dict(self.frames), dict(self.metas)
        other.text = list(self.text)
        return other

    def line(self, value):
        self.text.append(json.dumps(value) + "\n")

    def _stack(self, frames):
        ids = []
        for x in frames[:MAX_FRAMES]:
            name = x["filename"]
            if name == "??" or name.startswith(HERE):
                continue
            key = (name, x["line"], x["name"])
            i = self.frames.get(key)
            if i is None:
                i = self.frames[key] = len(self.frames)
                self.line(["F", *key])
            ids.append(i)
        ids = tuple(ids)
        k = self.stacks.get(ids)
        if k is None:
            k = self.stacks[ids] = len(self.stacks)
            self.line(["K", ids])
        return k

    def events(self, trace):
        by_list, metas, write = {}, self.metas, self.text.append
        for e in trace:
            kind = SHORT.get(e["action"])
            if kind is None:
                continue
            m = e.get("user_metadata") or ""
            mi = metas.get(m)
            if mi is None:
                mi = metas[m] = len(metas)
                self.line(["M", m])
            k = 0
            if kind == "a":
                frames = e.get("frames") or ()
                # frames that are the same list are one stack; the list is kept by `trace` while this runs
                k = by_list.get(id(frames))
                if k is None:
                    k = by_list[id(frames)] = self._stack(frames)
            write(f'["{kind}",{e.get("addr", 0)},{e["size"]},{e.get("stream", 0)},{mi},{k}]\n')


class W:
    # a signal can come while the same thread writes
    lock = threading.RLock()
    # by device: what was taken over already, and how many allocations it had had then
    bodies = {}
    taken = {}
    seconds = 0.0
    # what `tonnage_repeat` has to say in every head
    about = {}


def snapshot():
    """The allocator's blocks and history. C++ looks for generated code in `torch._inductor`, which torch would import for it, here and now: in
    another thread's own imports, or for nothing at the end."""
    torch = S.torch
    stand_in = object()
    if "_inductor" not in vars(torch):
        torch._inductor = stand_in
    try:
        return torch.cuda.memory._snapshot()
    finally:
        if vars(torch).get("_inductor") is stand_in:
            del torch._inductor


def body(device):
    return W.bodies.setdefault(device, Body())


class quiet:
    """The recorder at work: alone, without a garbage collection (one of its making could free the script's tensors earlier), its time taken."""

    def __init__(self, wait=120):
        self.wait = wait

    def __enter__(self):
        """Whether it got its turn."""
        self.mine = W.lock.acquire(timeout=self.wait) if self.wait else W.lock.acquire(blocking=False)
        self.collecting = gc.isenabled()
        gc.disable()
        self.began = time.time()
        return self.mine

    def __exit__(self, *_):
        if self.collecting:
            gc.enable()
        if self.mine:
            W.seconds += time.time() - self.began
            W.lock.release()


def take_over(snap):
    """The history so far becomes lines for good; the caller clears it."""
    for d, trace in enumerate(snap["device_traces"]):
        if trace:
            body(d).events(trace)
        if d in S.first:
            W.taken[d] = allocations(d)


# ---------------------------------------------------------------------------------------------------------- the ends
def out_of_memory(device, asked, total, free):
    """Called by the allocator when it is about to refuse."""
    try:
        import tonnage_repeat

        tonnage_repeat.wake()
        s = stats(device)
        frames = []
        f = sys._getframe(1)
        while f is not None and len(frames) < MAX_FRAMES:
            frames.append([f.f_code.co_filename, f.f_lineno, f.f_code.co_name])
            f = f.f_back
        free_now = S.torch.cuda.mem_get_info(device)
        S.ooms.append(
            dict(device=device, asked=asked, total=free_now[1], free=free_now[0], allocated=s["allocated_bytes"]["all"]["current"],
                 reserved=s["reserved_bytes"]["all"]["current"], n=s["allocation"]["all"]["allocated"], meta=mark(S.stack[-1] if S.stack else ""),
                 frames=frames))
        tag_all()
    except Exception as e:
        note(f"the out-of-memory observer failed: {e!r}")


def at_exit():
    if S.started and os.getpid() == S.pid:
        dump("exit")


def terminated(number, frame):
    at_exit()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def now_and_then():
    """Parts that a killed run leaves. At most a twentieth of its time goes into them: a part that would cost more than that waits."""
    wait = float(os.environ.get("TONNAGE_RECORD_EVERY", "2"))
    last = time.time()
    while S.started and os.getpid() == S.pid:
        time.sleep(wait)
        began = time.time()
        new = sum(allocations(d) - W.taken.get(d, S.first[d]) for d in S.first)
        if began - last < 20 * COST * new:
            continue
        dump("partial")
        last = time.time()
        wait = max(wait * 1.5, 20 * (last - began))


def _versions():
    from importlib import metadata

    out = {}
    for n in ("torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes", "deepspeed", "lightning", "flash-attn", "triton", "vllm", "timm", "torchvision", "liger-kernel"):
        # what the script did not import had no part in it
        if n.replace("-", "_") not in sys.modules:
            continue
        try:
            out[n] = metadata.version(n)
        except Exception:
            pass
    out["python"] = ".".join(map(str, sys.version_info[:3]))
    out["cuda"] = S.torch.version.cuda
    return out


def dump(reason):
    """Writes everything that is known, one file a device."""
    # a part is left out while the recorder is at work; the last word waits for it
    with quiet(wait=0 if reason == "partial" else 120) as mine:
        if not mine:
            return
        try:
            _write(reason, time.time())
        except Exception as e:
            sys.stderr.write(f"tonnage: the recording could not be written: {e!r}\n")


def _write(reason, began):
    torch = S.torch
    snap = snapshot()
    note_peaks()
    env = os.environ.get
    number = lambda k, d: int(env(k) or d)
    for d, trace in enumerate(snap["device_traces"]):
        if not trace and d not in W.bodies and not any(o["device"] == d for o in S.ooms):
            continue
        p = torch.cuda.get_device_properties(d)
        s = stats(d)
        head = dict(
            schema=FORMAT, reason=reason, pid=S.pid, device=d, argv=list(getattr(sys, "orig_argv", sys.argv)), versions=_versions(),
            rank=number("RANK", 0), world=number("WORLD_SIZE", 1), local_rank=number("LOCAL_RANK", 0),
            name=p.name, total=p.total_memory, capability=[p.major, p.minor], settings=env("PYTORCH_ALLOC_CONF") or env("PYTORCH_CUDA_ALLOC_CONF") or "",
            peaks=S.peaks.get(d, {}), end={k: s[f"{k}_bytes"]["all"]["current"] for k in ("allocated", "reserved", "requested")},
            retries=s.get("num_alloc_retries", 0), first=S.first.get(d, 0), seconds=round(began - S.t0, 3), recorder_seconds=round(W.seconds + time.time() - began, 3),
            ooms=[o for o in S.ooms if o["device"] == d], notes=S.notes, **W.about, **S.counts)
        # the tail of the history is read again next time, so what it adds is not kept
        now = body(d).copy()
        now.events(trace)
        text = json.dumps
        path = os.path.join(OUT, f"{S.pid}-{d}.raw")
        with open(path + ".new", "w", encoding="utf-8") as f:
            f.write(text(head) + "\n")
            f.writelines(text(["W", *t[1:]]) + "\n" for t in S.turns if t[0] == d)
            f.writelines(now.text)
            f.writelines(text(["T", *t[1:]]) + "\n" for t in S.tags if t[0] == d)
            f.write('["E"]\n')
        os.replace(path + ".new", path)
