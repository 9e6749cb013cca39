"""What the recorder knows of this process: one set of variables that its parts share."""
import os
import time
import weakref

FORMAT = "tonnage.raw/1"
OUT = os.environ.get("TONNAGE_RECORD_DIR", "")
HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep
MAX_FRAMES = 48


class S:
    pid = os.getpid()
    torch = None
    started = False
    # switches PyTorch's own history on (`True`) and off
    record = None
    # tells the history where the run is
    here = None
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
    t0 = time.time()


def stats(device):
    return S.torch._C._cuda_memoryStats(device)


def allocations(device):
    """How many the device has had."""
    return stats(device)["allocation"]["all"]["allocated"]


def note_peaks():
    for d in S.first:
        s = stats(d)
        now = {k: s[f"{k}_bytes"]["all"]["peak"] for k in ("allocated", "reserved", "requested")}
        old = S.peaks.setdefault(d, now)
        for k, v in now.items():
            old[k] = max(old[k], v)


def mark(module=""):
    """Where the run is, as one string."""
    return f"{S.step}~{S.mb}~{S.phase}~{module}~{S.where}~{S.amp}"


def short(name):
    """A module's or parameter's name without its wrappers'."""
    drop = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
    name += "."
    for d in drop:
        if name.startswith(d):
            name = name[len(d):]
        name = name.replace("." + d, ".")
    return name.rstrip(".")


def note(text):
    """Something to tell once."""
    if text not in S.notes:
        S.notes.append(text)
