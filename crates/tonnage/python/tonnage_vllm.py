"""What vLLM needs on the null device beyond a device's own behaviour. Loaded by sitecustomize where `tonnage dry-run` runs vLLM; every
replacement says so once on standard error, on a line that begins with `tonnage: `.

FlashInfer compiles CUDA sources while it runs (minutes of nvcc for each module, and their kernels would do nothing here). Its Python, which
makes the tensors, stays; a module that would have to be compiled becomes an object whose functions do nothing and answer 0.
"""
import importlib.util
import os
import shutil
import sys


def arm():
    _toolkit()
    sys.meta_path.insert(0, _Finder({"flashinfer.jit.core": _flashinfer}))


def _toolkit():
    """vLLM leaves FlashInfer out where it sees no CUDA compiler. Its own image has one; here the wheels bring it."""
    here = os.path.dirname(sys.executable)
    if not shutil.which("ninja") and os.path.exists(os.path.join(here, "ninja")):
        os.environ["PATH"] = here + os.pathsep + os.environ.get("PATH", "")
    if any(os.environ.get(v) for v in ("CUDA_HOME", "CUDA_PATH")) or shutil.which("nvcc") or os.path.isdir("/usr/local/cuda"):
        return
    for folder in sys.path:
        home = os.path.join(folder, "nvidia", "cu13")
        if os.path.exists(os.path.join(home, "bin", "nvcc")):
            os.environ["CUDA_HOME"] = home
            _say("CUDA_HOME names the compiler of the wheels, so that FlashInfer is used as in vLLM's own image")
            return


class _Finder:
    """Finds nothing itself: lets a change run after the import of a module."""

    def __init__(self, changes):
        self.changes = changes

    def find_spec(self, name, path=None, target=None):
        change = self.changes.pop(name, None)
        if change is None:
            return None
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        plain = spec.loader.exec_module

        def exec_module(module):
            plain(module)
            try:
                change(module)
            except Exception as e:
                _say(f"{name} is not as expected, left as it is: {e!r}")

        spec.loader.exec_module = exec_module
        return spec


def _say(text):
    sys.stderr.write(f"tonnage: {text}\n")
    sys.stderr.flush()


class _Nothing:
    """A module of kernels that do nothing."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: 0


def _flashinfer(core):
    plain = core.JitSpec.build_and_load
    said = set()

    def build_and_load(self, *args, **kwargs):
        found = self.try_load()
        if found is not None:
            return found
        name = getattr(self, "name", "?")
        if name not in said:
            said.add(name)
            _say(f"FlashInfer's module {name} is not compiled: its kernels do nothing")
        return _Nothing()

    build_and_load.__wrapped__ = plain
    core.JitSpec.build_and_load = build_and_load
