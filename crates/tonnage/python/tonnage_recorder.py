"""Records what PyTorch's CUDA caching allocator does in this process, without the script knowing.

PyTorch keeps the history itself (`torch.cuda.memory._record_memory_history`); this module switches it on when CUDA is first used,
says beside it which step, phase and module is running (`_cuda_setMemoryMetadata`, module and optimizer hooks that touch no tensor),
notes which addresses hold parameters, gradients, optimizer states and inputs, and writes everything to TONNAGE_RECORD_DIR at exit, when
memory runs out, and from time to time, so that a run that is killed leaves a readable part.

No tensor is created or kept here; nothing that the allocator does changes.
"""
import atexit
import os
import signal
import sys
import threading
import time
import weakref

import tonnage_repeat as repeat
import tonnage_writer as writer
from tonnage_repeat import R
from tonnage_state import HERE, OUT, S, allocations, mark, note, note_peaks, short
from tonnage_tags import tag, tag_gradients, tag_model, tag_states

LIBRARY = tuple({os.path.dirname(os.__file__) + os.sep, os.path.realpath(os.path.dirname(os.__file__)) + os.sep})


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
    atexit.register(writer.at_exit)
    os.register_at_fork(after_in_child=_forked)
    leave = os._exit

    def _exit(code):
        writer.at_exit()
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

    def switch(on):
        if on:
            record(enabled="all", context="alloc", stacks="python", max_entries=sys.maxsize)
        else:
            record(enabled=None)

    S.record, S.here = switch, _here
    switch(True)

    def refused(*a, **k):
        note("the script's own call of _record_memory_history was left out: tonnage records")

    torch.cuda.memory._record_memory_history = refused
    S.marks_ok = hasattr(C, "_cuda_setMemoryMetadata")
    for d in range(torch.cuda.device_count()):
        S.first[d] = allocations(d)
    plain_reset = C._cuda_resetPeakMemoryStats

    def reset(device):
        note_peaks()
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
        C._cuda_attach_out_of_memory_observer(writer.out_of_memory)
    try:
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, writer.terminated)
    except (ValueError, OSError):
        pass
    _say()
    threading.Thread(target=writer.now_and_then, name="tonnage-recorder", daemon=True).start()


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
            note(f"the recorder's {hook.__name__} failed: {e!r}")

    return run


def _say(module=""):
    if not S.marks_ok or R.resting:
        return
    text = mark(module)
    # the remark belongs to a thread; what the engine's threads do outside modules is told by `_turn`
    if not module and threading.get_ident() != S.thread:
        text = ""
    S.torch._C._cuda_setMemoryMetadata(text)


def _turn():
    """From this allocation on, threads without a remark of their own (the autograd engine's) are here."""
    if not R.resting:
        d = S.torch.cuda.current_device()
        S.turns.append((d, allocations(d), mark()))


def _here():
    _say(S.stack[-1] if S.stack else "")
    _turn()


def _user_line():
    """The innermost line outside libraries."""
    f = sys._getframe(1)
    while f is not None:
        name = f.f_code.co_filename
        if not name.startswith(HERE) and not _is_library(name):
            return f"{name}:{f.f_lineno}"
        f = f.f_back
    return ""


def _is_library(name):
    return "site-packages" in name or "dist-packages" in name or name.startswith(LIBRARY) or name.startswith("<")


def _has_parameters(module):
    return next(iter(module.parameters()), None) is not None


def _learn(root):
    """Names of a root's modules; of a second root they start with its class."""
    first = not any(r() is not None for r in S.roots)
    lead = "" if first else type(root).__name__ + "."
    for n, m in root.named_modules():
        if m not in S.names:
            S.names[m] = (lead + short(n)).rstrip(".")
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
    root = not S.stack and S.phase != "backward"
    if root:
        if module not in S.names and _has_parameters(module):
            _learn(module)
        if module in S.names:
            _root(module)
    S.stack.append(S.names.get(module) or (type(module).__name__ if module not in S.names else ""))
    repeat.called(module, args, S.stack[-1], root)
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
        tag_model(module)


def _leave(module, args, *rest):
    # (kwargs, output); only (output) where the module raised
    kwargs = rest[0] if len(rest) == 2 else {}
    if _compiling() or not S.started:
        return
    if S.stack:
        S.stack.pop()
    if not S.stack and S.phase != "backward" and module in S.names:
        if not R.resting:
            found = [t for t in list(args) + list(kwargs.values()) if isinstance(t, S.torch.Tensor)]
            tag("inputs", [(t, "") for t in found])
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
        S.phase, S.where = "backward", "" if R.resting else _user_line()
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
    if not R.resting:
        tag_gradients(optimizer)
    S.mb = 0
    S.phase = "optimizer"
    _say()


def _after_step(optimizer, args, kwargs):
    if not S.started or _compiling():
        return
    S.opt_depth = max(0, S.opt_depth - 1)
    if S.opt_depth:
        return
    if not R.resting:
        tag_states(optimizer)
    S.step += 1
    S.mb = 0
    S.phase = "between"
    repeat.step_ended(optimizer)
    _here()


# ---------------------------------------------------------------------------------------------------------- one rank alone
def _world(torch):
    """With TONNAGE_WORLD this process is one rank of many and the others are not there: the store answers for them."""
    import tonnage_objects

    lone = bool(os.environ.get("TONNAGE_WORLD"))
    if lone:
        import tonnage_lone

        tonnage_lone.install(torch)
    tonnage_objects.install(torch, lone)
