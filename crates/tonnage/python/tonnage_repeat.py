"""Steps that repeat are recorded once.

When the last steps made the same requests, PyTorch's history is put aside: what follows is nothing new, and a run of thousands of steps needs neither
the time nor the memory for it. The allocator's statistics, its peaks too, go on. The recording is taken up again when something else begins: modules called in
another order or with other shapes, a step that keeps memory or passes the peak, a full card. Then the allocator's list of blocks says what lives where.

TONNAGE_RECORD_ALL=1 records every step.
"""
import os

from tonnage_state import S, allocations, note_peaks, stats
from tonnage_writer import W, body, quiet, snapshot, take_over

# so many steps are recorded at least, and so often must a cycle of steps be repeated
LEAST, TIMES = 6, 3
# a cycle of steps: one, or those of several optimizers
LONGEST = 4
# modules of a call whose inputs are looked at: the first ones, where the script's own tensors arrive
LOOKED_AT = 6
KINDS = ("allocation", "allocated_bytes", "requested_bytes", "segment", "reserved_bytes")


class R:
    allowed = os.environ.get("TONNAGE_RECORD_ALL", "") in ("", "0")
    resting = False
    # since the last step's end: modules and how they were called, in order
    calls = []
    left = 0
    totals = {}
    # of the last steps: (optimizer, calls, by device: requests and bytes taken and given back)
    steps = []
    cycle, at, top = [], 0, {}
    # finished rests, and the one that lasts: first step, steps of the cycle, steps so far, those of them that did something beside it, whether
    # a step that was unlike them ended it
    rests = []
    now = None
    missed = None


def _totals():
    out = {}
    for d in S.first:
        s = stats(d)
        out[d] = tuple(s[k][pool][way] for k in KINDS for pool in ("small_pool", "large_pool") for way in ("allocated", "freed"))
    return out


def _difference(new, old):
    return tuple(sorted((d, tuple(a - b for a, b in zip(x, old.get(d, ())))) for d, x in new.items()))


def _kept(change):
    """By device: what is more than before, of everything that is in use or from the driver."""
    return [(d, [x[i] - x[i + 1] for i in range(0, len(x), 2)]) for d, x in change]


def called(module, args, name, root):
    """A module is about to run. While resting: is it the one that is expected?"""
    if not R.allowed:
        return
    if root:
        R.left = LOOKED_AT
    if R.left == 0:
        return
    R.left -= 1
    tensor, torch = S.torch.Tensor, S.torch
    key = (type(module).__name__, name, module.training, torch.is_grad_enabled(), tuple((tuple(t.shape), t.dtype) for t in args if isinstance(t, tensor)))
    if R.resting:
        expected = R.cycle[R.at][1]
        n = len(R.calls)
        if n >= len(expected) or expected[n] != key:
            wake()
    R.calls.append(key)


def step_ended(optimizer):
    """An optimizer's step is over."""
    if not R.allowed:
        return
    totals = _totals()
    change = _difference(totals, R.totals)
    step = (id(optimizer), tuple(R.calls), change)
    R.calls, R.totals = [], totals
    if R.resting:
        _still(step)
    else:
        R.steps = [*R.steps[-LONGEST * TIMES:], step]
        if S.step >= LEAST:
            _rest()


def _still(step):
    expected = R.cycle[R.at]
    R.at = (R.at + 1) % len(R.cycle)
    note_peaks()
    higher = [d for d, top in R.top.items() if any(S.peaks[d][k] > top[k] for k in top)]
    if higher:
        R.missed = dict(step=S.step - 1, **S.peaks[higher[0]])
    if higher or step[:2] != expected[:2] or _kept(step[2]) != _kept(expected[2]):
        R.now["broken"] = True
        wake()
        return
    R.now["steps"] += 1
    if step[2] != expected[2]:
        R.now["other"] += 1


def _rest():
    for n in range(1, LONGEST + 1):
        last = R.steps[-n:]
        if len(R.steps) >= n * TIMES and all(R.steps[-n * (k + 1):len(R.steps) - n * k] == last for k in range(1, TIMES)):
            break
    else:
        return
    kept = [dict(_kept(x[2])) for x in last]
    grows = any(sum(x) for d in S.first for x in zip(*(k[d] for k in kept)))
    if grows or not any(x[1] for x in last):
        return
    with quiet():
        snap = snapshot()
        if not all(_same(snap["device_traces"], d, [dict(x[2])[d][0] + dict(x[2])[d][2] for x in last]) for d in S.first):
            # as many and as large in sum, and yet others
            R.steps.clear()
            return
        take_over(snap)
        S.record(False)
        note_peaks()
        R.top = {d: dict(S.peaks[d]) for d in S.first}
        R.cycle, R.at, R.resting = last, 0, True
        R.now = dict(first=S.step, cycle=n, steps=0, other=0, broken=False)
        _say_about()


def _same(traces, device, counts):
    """Did the last cycle ask for the same, request for request, as the one before? `counts`: requests of the cycle's steps."""
    n, sizes = sum(counts), []
    for e in reversed(traces[device]):
        if len(sizes) == 2 * n:
            break
        if e["action"] == "alloc":
            sizes.append(e["size"])
    return len(sizes) == 2 * n and sizes[:n] == sizes[n:]


def wake():
    """Takes the recording up again, with what lives where."""
    if not R.resting:
        return
    with quiet():
        R.resting = False
        for d, segments in _blocks().items():
            body(d).line(["B", allocations(d), S.step, segments])
            W.taken[d] = allocations(d)
        S.record(True)
        R.rests.append(R.now)
        R.now = None
        R.steps.clear()
        R.totals = _totals()
        _say_about()
    S.here()


def _blocks():
    """By device: every segment as [address, bytes, grown, [[address, bytes, asked for, in use], ...]]."""
    out = {d: [] for d in S.first}
    for s in snapshot()["segments"]:
        at, blocks = s["address"], []
        for b in s["blocks"]:
            state = {"active_allocated": 1, "inactive": 0}.get(b["state"], 2)
            if state:
                blocks.append([at, b["size"], b.get("requested_size", b["size"]), state, s.get("stream", 0)])
            at += b["size"]
        out.setdefault(s["device"], []).append([s["address"], s["total_size"], bool(s.get("is_expandable")), blocks])
    return out


def _say_about():
    W.about = dict(rests=R.rests + ([R.now] if R.now else []), missed=R.missed)
