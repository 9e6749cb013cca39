"""Records what PyTorch's CUDA caching allocator does in this process, without the script knowing.

PyTorch keeps the history itself (`torch.cuda.memory._record_memory_history`); this module switches it on when CUDA is first used,
says beside it which step, phase and module is running (`_cuda_setMemoryMetadata`, module and optimizer hooks that touch no tensor),
notes which addresses hold parameters, gradients, optimizer states and inputs, and writes everything to TONNAGE_RECORD_DIR at exit, when
memory runs out, and from time to time, so that a run that is killed leaves a readable part.

No tensor is created or kept here; nothing that the allocator does changes.
"""
import atexit
import functools
import gc
import json
import os
import signal
import sys
import threading
import time
import weakref

FORMAT = "tonnage.raw/1"
OUT = os.environ.get("TONNAGE_RECORD_DIR", "")
HERE = os.path.abspath(__file__)
MAX_FRAMES = 48
LIBRARY = tuple({os.path.dirname(os.__file__) + os.sep, os.path.realpath(os.path.dirname(os.__file__)) + os.sep})


class State:
    pid = os.getpid()
    torch = None
    started = False
    lock = threading.Lock()
    counts = {}
    amp = ""
    step, mb, phase, where = -1, 0, "load", ""
    stack = []
    names = weakref.WeakKeyDictionary()
    roots = []
    optimizers = []
    opt_depth = 0
    marks_ok = True
    thread = 0
    turns = []
    generation = 0
    tags = []
    tagged_states = {}
    ooms = []
    notes = []
    peaks = {}
    first = {}
    seconds = 0.0
    t0 = time.time()


S = State


def arm():
    """Waits for `import torch`."""
    if not OUT or "torch" in sys.modules:
        return
    sys.meta_path.insert(0, _Finder())


class _Finder:
    """Finds nothing itself; takes the real finder's answer for `torch` and lets `install` run after the import."""

    busy = False

    def find_spec(self, name, path=None, target=None):
        if name != "torch" or self.busy:
            return None
        self.busy = True
        try:
            import importlib.util

            spec = importlib.util.find_spec(name)
        finally:
            self.busy = False
        if spec is None or spec.loader is None:
            return spec
        loader, plain = spec.loader, spec.loader.exec_module
        me = self

        def exec_module(module):
            loader.exec_module = plain
            if me in sys.meta_path:
                sys.meta_path.remove(me)
            plain(module)
            try:
                install(module)
            except Exception as e:
                sys.stderr.write(f"tonnage: recording could not be set up: {e!r}\n")

        loader.exec_module = exec_module
        return spec


def install(torch):
    S.torch = torch
    _world(torch)
    if torch.version.cuda is None:
        return
    atexit.register(_at_exit)
    os.register_at_fork(after_in_child=_forked)
    leave = os._exit

    def _exit(code):
        _at_exit()
        leave(code)

    os._exit = _exit

    def start():
        try:
            _start()
        except Exception as e:
            S.started = False
            sys.stderr.write(f"tonnage: recording could not begin: {e!r}\n")

    torch.cuda._lazy_call(start)


def _forked():
    """A child (a data loader's worker) has a copy of the state and must not write it."""
    S.started = False


def _start():
    """CUDA has just been initialised."""
    torch = S.torch
    if S.started or os.getpid() != S.pid:
        return
    S.started = True
    S.thread = threading.get_ident()
    S.t0 = time.time()
    C = torch._C
    record = torch.cuda.memory._record_memory_history
    record(enabled="all", context="alloc", stacks="python", max_entries=sys.maxsize)

    def refused(*a, **k):
        note = "the script's own call of _record_memory_history was left out: tonnage records"
        if note not in S.notes:
            S.notes.append(note)

    torch.cuda.memory._record_memory_history = refused
    S.marks_ok = hasattr(C, "_cuda_setMemoryMetadata")
    for d in range(torch.cuda.device_count()):
        S.first[d] = _stats(d)["allocation"]["all"]["allocated"]
    plain_reset = C._cuda_resetPeakMemoryStats

    def reset(device):
        _note_peaks()
        return plain_reset(device)

    C._cuda_resetPeakMemoryStats = reset
    plain_empty = C._cuda_emptyCache

    def empty():
        # segments given back because the script asked are told from those that a full card forced out
        before, S.where = S.where, "empty_cache"
        _say(S.stack[-1] if S.stack else "")
        try:
            return plain_empty()
        finally:
            S.where = before
            _say(S.stack[-1] if S.stack else "")

    C._cuda_emptyCache = empty
    m = torch.nn.modules.module
    m.register_module_forward_pre_hook(_quiet(_enter))
    for how in (dict(with_kwargs=True, always_call=True), dict(always_call=True), {}):
        try:
            m.register_module_forward_hook(_quiet(_leave), **how)
            break
        except TypeError:  # older versions know less
            continue
    o = sys.modules["torch.optim.optimizer"]
    if hasattr(o, "register_optimizer_step_pre_hook"):
        o.register_optimizer_step_pre_hook(_quiet(_before_step))
        o.register_optimizer_step_post_hook(_quiet(_after_step))
    _wrap_backward(torch)
    if hasattr(C, "_cuda_attach_out_of_memory_observer"):
        C._cuda_attach_out_of_memory_observer(_out_of_memory)
    try:
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _terminated)
    except (ValueError, OSError):
        pass
    _say()
    threading.Thread(target=_now_and_then, name="tonnage-recorder", daemon=True).start()


def _stats(device):
    return S.torch._C._cuda_memoryStats(device)


def _note_peaks():
    for d in S.first:
        s = _stats(d)
        now = {k: s[f"{k}_bytes"]["all"]["peak"] for k in ("allocated", "reserved", "requested")}
        old = S.peaks.setdefault(d, now)
        for k, v in now.items():
            old[k] = max(old[k], v)


# ---------------------------------------------------------------------------------------------------------- where we are
def _compiling():
    c = getattr(S.torch, "compiler", None)
    return c is not None and hasattr(c, "is_compiling") and c.is_compiling()


def _quiet(hook):
    """A hook that fails is noted once and never reaches the script."""

    def run(*args):
        try:
            hook(*args)
        except Exception as e:
            note = f"the recorder's {hook.__name__} failed: {e!r}"
            if note not in S.notes:
                S.notes.append(note)

    return run


def _say(module=""):
    if not S.marks_ok:
        return
    text = f"{S.step}~{S.mb}~{S.phase}~{module}~{S.where}~{S.amp}"
    # the remark belongs to a thread; what the engine's threads do outside modules is told by `_turn`
    if not module and threading.get_ident() != S.thread:
        text = ""
    S.torch._C._cuda_setMemoryMetadata(text)


def _turn():
    """From this allocation on, threads without a remark of their own (the autograd engine's) are here."""
    d = S.torch.cuda.current_device()
    S.turns.append((d, _stats(d)["allocation"]["all"]["allocated"], f"{S.step}~{S.mb}~{S.phase}~~{S.where}~{S.amp}"))


def _user_line():
    """The innermost line outside libraries."""
    f = sys._getframe(1)
    while f is not None:
        name = f.f_code.co_filename
        if name != HERE and not _is_library(name):
            return f"{name}:{f.f_lineno}"
        f = f.f_back
    return ""


def _is_library(name):
    return "site-packages" in name or "dist-packages" in name or name.startswith(LIBRARY) or name.startswith("<")


def _short(name):
    drop = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
    name += "."
    for d in drop:
        if name.startswith(d):
            name = name[len(d):]
        name = name.replace("." + d, ".")
    return name.rstrip(".")


def _has_parameters(module):
    return next(iter(module.parameters()), None) is not None


def _learn(root):
    """Names of a root's modules; of a second root they start with its class."""
    first = not any(r() is not None for r in S.roots)
    lead = "" if first else type(root).__name__ + "."
    for n, m in root.named_modules():
        if m not in S.names:
            S.names[m] = (lead + _short(n)).rstrip(".")
    if not any(r() is root for r in S.roots):
        S.roots.append(weakref.ref(root))


def _generate_call():
    """The running `generate`, if there is one: a number that is the same for all its forward calls."""
    f = sys._getframe(1)
    while f is not None:
        if f.f_code.co_name == "generate" and "generation" in f.f_code.co_filename:
            return id(f)
        f = f.f_back
    return 0


def _enter(module, args):
    if _compiling() or not S.started:
        return
    if not S.stack and S.phase != "backward":
        if module not in S.names and _has_parameters(module):
            _learn(module)
        if module in S.names:
            _root(module)
    S.stack.append(S.names.get(module) or (type(module).__name__ if module not in S.names else ""))
    _say(S.stack[-1])


def _root(module):
    torch = S.torch
    if S.step < 0:
        S.step = 0
    S.amp = "amp" if torch.is_autocast_enabled() else ""
    if torch.is_grad_enabled():
        S.phase = "forward"
    else:
        g = _generate_call()
        if g == 0:
            S.phase = "forward"
        else:
            S.phase = "decode" if g == S.generation else "prefill"
        S.generation = g
    if S.step < 3:
        _tag_model(module)


def _leave(module, args, *rest):
    # (kwargs, output); only (output) where the module raised
    kwargs = rest[0] if len(rest) == 2 else {}
    if _compiling() or not S.started:
        return
    if S.stack:
        S.stack.pop()
    if not S.stack and S.phase != "backward" and module in S.names:
        found = [t for t in list(args) + list(kwargs.values()) if isinstance(t, S.torch.Tensor)]
        _tag("inputs", [(t, "") for t in found])
        if not S.torch.is_grad_enabled() and S.phase == "forward":
            S.phase = "between"
    _say(S.stack[-1] if S.stack else "")


def _wrap_backward(torch):
    import torch.autograd as A

    if not hasattr(A, "_engine_run_backward"):
        return
    plain = A._engine_run_backward

    def _engine_run_backward(t_outputs, *args, **kwargs):
        if S.phase == "backward" or not S.started or _compiling():
            return plain(t_outputs, *args, **kwargs)
        S.phase, S.where = "backward", _user_line()
        _say()
        _turn()
        try:
            return plain(t_outputs, *args, **kwargs)
        finally:
            S.phase, S.where = "between", ""
            S.mb += 1
            _say()
            _turn()

    A._engine_run_backward = _engine_run_backward
    A.graph._engine_run_backward = _engine_run_backward


def _before_step(optimizer, args, kwargs):
    if not S.started or _compiling():
        return
    S.opt_depth += 1
    if S.opt_depth > 1:
        return
    if not any(r() is optimizer for r in S.optimizers):
        S.optimizers.append(weakref.ref(optimizer))
    _tag_gradients(optimizer)
    S.mb = 0
    S.phase = "optimizer"
    _say()


def _after_step(optimizer, args, kwargs):
    if not S.started or _compiling():
        return
    S.opt_depth = max(0, S.opt_depth - 1)
    if S.opt_depth:
        return
    _tag_states(optimizer)
    S.step += 1
    S.mb = 0
    S.phase = "between"
    _say()
    _turn()


# ---------------------------------------------------------------------------------------------------------- what is what
def _place(t):
    """(device, address, bytes) of a tensor's storage; None where it is not on a device."""
    t = getattr(t, "_local_tensor", t)
    if not isinstance(t, S.torch.Tensor) or not t.is_cuda:
        return None
    s = t.untyped_storage()
    p = s.data_ptr()
    return (t.device.index or 0, p, s.nbytes()) if p else None


def _tag(category, pairs):
    by_device = {}
    for t, name in pairs:
        try:
            x = _place(t)
        except Exception:
            x = None
        if x:
            by_device.setdefault(x[0], []).append((x[1], x[2], name))
    for d, found in by_device.items():
        S.tags.append((d, _stats(d)["allocation"]["all"]["allocated"], category, found))


def _tag_model(root):
    P = []
    for n, p in root.named_parameters():
        P.append((p, _short(n)))
        q = getattr(p, "quant_state", None)
        if q is not None:
            states = [q, getattr(q, "state2", None)]
            parts = [getattr(s, a, None) for s in states if s is not None for a in ("absmax", "code", "offset")]
            _tag("quant_state", [(x, _short(n)) for x in parts if x is not None])
    _tag("parameters", P)
    counted = _counts()
    if counted["param_count"] >= S.counts.get("param_count", 0):
        S.counts = counted
    _tag("buffers", [(b, _short(n)) for n, b in root.named_buffers()])


def _tag_gradients(optimizer):
    names = {}
    for r in S.roots:
        m = r()
        if m is not None:
            names.update((id(p), _short(n)) for n, p in m.named_parameters())
    ps = [p for g in optimizer.param_groups for p in g["params"]]
    _tag("gradients", [(p.grad, names.get(id(p), "")) for p in ps if p.grad is not None])


def _tag_states(optimizer):
    n = sum(len(v) for v in optimizer.state.values() if hasattr(v, "__len__"))
    if S.step >= 3 and S.tagged_states.get(id(optimizer)) == n:
        return
    S.tagged_states[id(optimizer)] = n
    found = []
    for st in optimizer.state.values():
        if isinstance(st, dict):
            found += [(v, str(k)) for k, v in st.items() if isinstance(v, S.torch.Tensor)]
    _tag("optimizer_state", found)


def _tag_all():
    """What is alive when the run ends early."""
    for r in S.roots:
        m = r()
        if m is not None:
            _tag_model(m)
            _tag("gradients", [(p.grad, _short(n)) for n, p in m.named_parameters() if p.grad is not None])
    for r in S.optimizers:
        o = r()
        if o is not None:
            S.tagged_states.clear()
            _tag_states(o)


def _counts():
    seen, out = set(), dict(param_count=0, trainable_count=0, param_bytes=0, buffer_bytes=0)
    up = lambda n: (n + 511) // 512 * 512
    places = set()
    for r in S.roots:
        m = r()
        if m is None:
            continue
        for p in m.parameters():
            if id(p) in seen:
                continue
            seen.add(id(p))
            out["param_count"] += p.numel()
            if p.requires_grad:
                out["trainable_count"] += p.numel()
        for key, ts in (("param_bytes", m.parameters()), ("buffer_bytes", m.buffers())):
            for t in ts:
                try:
                    x = _place(t)
                except Exception:
                    x = None
                if x and x not in places:
                    places.add(x)
                    out[key] += up(x[2])
    out["model"] = ", ".join(type(r()).__name__ for r in S.roots if r() is not None)
    return out


# ---------------------------------------------------------------------------------------------------------- the ends
def _out_of_memory(device, asked, total, free):
    """Called by the allocator when it is about to refuse."""
    try:
        s = _stats(device)
        frames = []
        f = sys._getframe(1)
        while f is not None and len(frames) < MAX_FRAMES:
            frames.append([f.f_code.co_filename, f.f_lineno, f.f_code.co_name])
            f = f.f_back
        free_now = S.torch.cuda.mem_get_info(device)
        S.ooms.append(
            dict(device=device, asked=asked, total=free_now[1], free=free_now[0], allocated=s["allocated_bytes"]["all"]["current"],
                 reserved=s["reserved_bytes"]["all"]["current"], n=s["allocation"]["all"]["allocated"], meta=f"{S.step}~{S.mb}~{S.phase}~{S.stack[-1] if S.stack else ''}~{S.where}~{S.amp}",
                 frames=frames))
        _tag_all()
    except Exception as e:
        S.notes.append(f"the out-of-memory observer failed: {e!r}")


def _at_exit():
    if S.started and os.getpid() == S.pid:
        _dump("exit")


def _terminated(number, frame):
    _at_exit()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _now_and_then():
    wait = float(os.environ.get("TONNAGE_RECORD_EVERY", "2"))
    while S.started and os.getpid() == S.pid:
        time.sleep(wait)
        t = time.time()
        _dump("partial")
        # at most a twentieth of the run's time goes into parts that are overwritten
        wait = max(wait * 1.5, 20 * (time.time() - t))


def _snapshot(torch):
    """The allocator's history. C++ looks for generated code in `torch._inductor`, which torch would import for it, here and now: in another
    thread's own imports, or for nothing at the end."""
    stand_in = object()
    if "_inductor" not in vars(torch):
        torch._inductor = stand_in
    try:
        return torch.cuda.memory._snapshot()
    finally:
        if vars(torch).get("_inductor") is stand_in:
            del torch._inductor


@functools.cache
def _versions():
    from importlib import metadata

    out = {}
    for n in ("torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes", "deepspeed", "lightning", "flash-attn", "triton", "vllm", "timm", "torchvision", "liger-kernel"):
        try:
            out[n] = metadata.version(n)
        except Exception:
            pass
    out["python"] = ".".join(map(str, sys.version_info[:3]))
    out["cuda"] = S.torch.version.cuda
    return out


def _dump(reason):
    # a part is left out while another is being written; the last word waits for it
    if not S.lock.acquire(blocking=reason != "partial", timeout=120 if reason != "partial" else -1):
        return
    collecting = gc.isenabled()
    gc.disable()  # a collection caused by the recorder could free the script's tensors earlier
    began = time.time()
    try:
        _write(reason, began)
    except Exception as e:
        sys.stderr.write(f"tonnage: the recording could not be written: {e!r}\n")
    finally:
        if collecting:
            gc.enable()
        S.seconds += time.time() - began
        S.lock.release()


def _write(reason, began):
    torch = S.torch
    snap = _snapshot(torch)
    _note_peaks()
    env = os.environ.get
    number = lambda k, d: int(env(k) or d)
    for d, trace in enumerate(snap["device_traces"]):
        if not trace and not any(o["device"] == d for o in S.ooms):
            continue
        p = torch.cuda.get_device_properties(d)
        s = _stats(d)
        head = dict(
            schema=FORMAT, reason=reason, pid=S.pid, device=d, argv=list(getattr(sys, "orig_argv", sys.argv)), versions=_versions(),
            rank=number("RANK", 0), world=number("WORLD_SIZE", 1), local_rank=number("LOCAL_RANK", 0),
            name=p.name, total=p.total_memory, capability=[p.major, p.minor], settings=env("PYTORCH_ALLOC_CONF") or env("PYTORCH_CUDA_ALLOC_CONF") or "",
            peaks=S.peaks.get(d, {}), end={k: s[f"{k}_bytes"]["all"]["current"] for k in ("allocated", "reserved", "requested")},
            retries=s.get("num_alloc_retries", 0), first=S.first.get(d, 0), seconds=round(began - S.t0, 3), recorder_seconds=round(S.seconds + time.time() - began, 3),
            ooms=[o for o in S.ooms if o["device"] == d], notes=S.notes, **S.counts)
        path = os.path.join(OUT, f"{S.pid}-{d}.raw")
        with open(path + ".new", "w", encoding="utf-8") as f:
            _lines(f, head, trace, [t[1:] for t in S.tags if t[0] == d], [t[1:] for t in S.turns if t[0] == d])
        os.replace(path + ".new", path)


def _lines(f, head, trace, tags, turns):
    text = json.dumps
    f.write(text(head) + "\n")
    for t in turns:
        f.write(text(["W", *t]) + "\n")
    stacks, frames, metas, by_list = {(): 0}, {}, {"": 0}, {}
    f.write('["K",[]]\n["M",""]\n')
    short = dict(alloc="a", free_requested="q", free_completed="c", segment_alloc="S", segment_free="s", segment_map="P", segment_unmap="p", oom="o")
    for e in trace:
        kind = short.get(e["action"])
        if kind is None:
            continue
        m = e.get("user_metadata") or ""
        mi = metas.get(m)
        if mi is None:
            mi = metas[m] = len(metas)
            f.write(text(["M", m]) + "\n")
        k = 0
        if kind == "a":
            fr = e.get("frames") or ()
            # frames that are the same list are one stack; the list is kept by `trace` while this runs
            k = by_list.get(id(fr))
            if k is None:
                ids = []
                for x in fr[:MAX_FRAMES]:
                    name = x["filename"]
                    if name == HERE or name == "??":
                        continue
                    key = (name, x["line"], x["name"])
                    i = frames.get(key)
                    if i is None:
                        i = frames[key] = len(frames)
                        f.write(text(["F", *key]) + "\n")
                    ids.append(i)
                ids = tuple(ids)
                k = stacks.get(ids)
                if k is None:
                    k = stacks[ids] = len(stacks)
                    f.write(text(["K", ids]) + "\n")
                by_list[id(fr)] = k
        f.write(f'["{kind}",{e.get("addr", 0)},{e["size"]},{e.get("stream", 0)},{mi},{k}]\n')
    for n, category, found in tags:
        f.write(text(["T", n, category, found]) + "\n")
    f.write('["E"]\n')


# ---------------------------------------------------------------------------------------------------------- one rank alone
def _world(torch):
    """With TONNAGE_WORLD this process is one rank of many and the others are not there: the store answers for them."""
    import tonnage_objects

    lone = bool(os.environ.get("TONNAGE_WORLD"))
    if lone:
        import tonnage_lone

        tonnage_lone.install(torch)
    tonnage_objects.install(torch, lone)
