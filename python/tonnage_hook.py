"""Publishes what PyTorch's allocator says of itself, for `tonnage run` and `tonnage watch`.

Armed in a process, it writes `PID.json` (`tonnage.process/1`, see docs/observe.md) into the folder that TONNAGE_PUBLISH names: at the end of an
optimizer's step, at most ten times a second, and now and then where no optimizer steps. It imports nothing that the program did not import
itself, starts no CUDA context, touches no tensor, and a failure of its own ends the publishing and nothing else.
"""
from __future__ import annotations

import atexit
import json
import os
import sys
import threading
import time
from typing import Any, Optional

__all__ = ["arm", "publish"]
__version__ = "0.1.0"

SCHEMA = "tonnage.process/1"
# seconds: between two files at least; of silence, before the watcher publishes between steps; the watcher's own beat without steps
LEAST, SILENCE, BEAT = 0.1, 5.0, 0.25
# an error's text is cut here: a traceback of a compiled graph may have megabytes
LONGEST = 64 << 10


def _folder() -> Optional[str]:
    given = os.environ.get("TONNAGE_PUBLISH")
    if given:
        return given
    run = os.environ.get("XDG_RUNTIME_DIR")
    return os.path.join(run, "tonnage") if run else None


class _Hook:
    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.lock = threading.RLock()
        self.last = 0.0
        # steps by optimizer: a program with two of them has as many steps as the one that steps most
        self.steps: dict[int, int] = {}
        self.stepped = False
        self.hooked = False
        self.peaks: dict[int, list[int]] = {}
        self.out_of_memory: Optional[str] = None
        self.on = True
        self.stop = threading.Event()
        self.uuids: dict[int, Optional[str]] = {}

    def torch(self) -> Any:
        """PyTorch, where the program has imported it and its device is in use."""
        t = sys.modules.get("torch")
        cuda = getattr(t, "cuda", None)
        try:
            return t if cuda is not None and cuda.is_initialized() else None
        except Exception:
            return None

    def watch(self) -> None:
        while self.on and not self.stop.wait(LEAST if not self.hooked else BEAT):
            try:
                self.beat()
            except Exception:
                # a module that is only half imported; a later beat sees it whole
                continue

    def beat(self) -> None:
        t = sys.modules.get("torch")
        if not self.hooked and t is not None:
            optimizer = sys.modules.get("torch.optim.optimizer")
            register = getattr(optimizer, "register_optimizer_step_post_hook", None)
            compiling = getattr(getattr(t, "compiler", None), "is_compiling", None)
            if register is not None and compiling is not None:

                def stepped(optimizer: Any, *_: Any) -> None:
                    # a step that is being compiled stays as it is, and is not counted
                    if not compiling():
                        self.step(optimizer)

                register(stepped)
                self.hooked = True
        if time.monotonic() - self.last >= (SILENCE if self.stepped else BEAT):
            self.publish()

    def step(self, optimizer: Any) -> None:
        self.steps[id(optimizer)] = self.steps.get(id(optimizer), 0) + 1
        self.stepped = True
        if time.monotonic() - self.last >= LEAST:
            self.publish()

    def uuid(self, torch: Any, device: int) -> Optional[str]:
        if device not in self.uuids:
            try:
                text = str(torch.cuda.get_device_properties(device).uuid)
                self.uuids[device] = text if text.startswith("GPU-") else "GPU-" + text
            except Exception:  # torch before 2.5
                self.uuids[device] = None
        return self.uuids[device]

    def devices(self, torch: Any) -> list[dict[str, Any]]:
        found = []
        for i in range(torch.cuda.device_count()):
            s = torch.cuda.memory_stats(i)
            if not s.get("reserved_bytes.all.peak"):
                continue
            # the program may have set its peaks back
            peak = self.peaks.setdefault(i, [0, 0])
            peak[0] = max(peak[0], s["allocated_bytes.all.peak"])
            peak[1] = max(peak[1], s["reserved_bytes.all.peak"])
            found.append(
                {
                    "index": i,
                    "uuid": self.uuid(torch, i),
                    "allocated_bytes": s["allocated_bytes.all.current"],
                    "reserved_bytes": s["reserved_bytes.all.current"],
                    "peak_allocated_bytes": peak[0],
                    "peak_reserved_bytes": peak[1],
                    "requested_bytes": s.get("requested_bytes.all.current"),
                    "inactive_split_bytes": s.get("inactive_split_bytes.all.current"),
                    "alloc_retries": s.get("num_alloc_retries"),
                    "ooms": s.get("num_ooms"),
                }
            )
        return found

    def publish(self, patience: float = 0.0) -> None:
        if not self.on:
            return
        torch = self.torch()
        if torch is None or not self.lock.acquire(timeout=patience):
            return
        try:
            self.last = time.monotonic()
            devices = self.devices(torch)
            if not devices:
                return
            said = {
                "schema": SCHEMA,
                "pid": os.getpid(),
                "at_unix_ms": time.time_ns() // 1_000_000,
                "framework": "torch " + str(torch.__version__),
                "step": max(self.steps.values()) if self.steps else None,
                "devices": devices,
                "out_of_memory": self.out_of_memory,
            }
            os.makedirs(self.folder, mode=0o700, exist_ok=True)
            path = os.path.join(self.folder, f"{os.getpid()}.json")
            with open(path + ".tmp", "w", encoding="utf-8") as f:
                json.dump(said, f)
            os.replace(path + ".tmp", path)
        except Exception:
            # a full disk, a folder that is gone: nothing that the program should hear of
            self.on = False
        finally:
            self.lock.release()

    def failed(self, error: Optional[BaseException]) -> None:
        """An error that ends the program, or a thread of it: the out-of-memory error's own text is kept, also where it is the cause of another."""
        seen = 0
        while error is not None and seen < 16:
            text = str(error)
            if "out of memory" in text.lower():
                self.out_of_memory = f"{type(error).__module__}.{type(error).__name__}: {text}"[:LONGEST]
                self.publish(1.0)
                return
            error, seen = error.__cause__ or error.__context__, seen + 1


_hook: Optional[_Hook] = None


def publish() -> None:
    """Publishes now, as at the end of a step: for loops without an optimizer."""
    if _hook is not None:
        _hook.publish(1.0)


def arm(folder: Optional[str] = None) -> bool:
    """Begins; says whether there is a folder to publish in. Armed twice is armed once."""
    global _hook
    folder = folder or _folder()
    if _hook is not None or not folder:
        return _hook is not None
    hook = _hook = _Hook(folder)

    class Begin:
        """Sees PyTorch imported; a program that does not import it has no thread of ours."""

        @staticmethod
        def find_spec(name: str, path: Any = None, target: Any = None) -> None:
            if name == "torch":
                begin()

    def begin() -> None:
        sys.meta_path[:] = [f for f in sys.meta_path if f is not Begin]
        threading.Thread(target=hook.watch, name="tonnage", daemon=True).start()

    def forked() -> None:
        # a child has its own file, if it uses a device at all, and none of its parent's threads or locks
        hook.lock = threading.RLock()
        hook.steps, hook.peaks, hook.out_of_memory, hook.last = {}, {}, None, 0.0

    def at_error(kind: Any, error: Any, trace: Any) -> None:
        hook.failed(error)
        before(kind, error, trace)

    def at_thread_error(args: Any) -> None:
        hook.failed(args.exc_value)
        thread_before(args)

    def end() -> None:
        hook.stop.set()
        hook.publish(1.0)

    before, sys.excepthook = sys.excepthook, at_error
    thread_before, threading.excepthook = threading.excepthook, at_thread_error
    atexit.register(end)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=forked)
    if "torch" in sys.modules:
        begin()
    else:
        sys.meta_path.insert(0, Begin)
    return True
