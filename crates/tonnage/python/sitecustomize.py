"""Loaded by Python at start-up because `tonnage dry-run` or `tonnage run --hook` puts this folder on PYTHONPATH: arms what lies beside it, then runs the
environment's own sitecustomize, which this file hides."""
import os
import sys

_here = os.path.dirname(os.path.abspath(__file__))


def _next_sitecustomize():
    import importlib.machinery
    import importlib.util

    # behind this folder only: there may be two of ours
    folders = [os.path.abspath(p or ".") for p in sys.path]
    behind = sys.path[folders.index(_here) + 1 :] if _here in folders else sys.path
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", behind)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def _arm(variable, module):
    if os.environ.get(variable) and os.path.exists(os.path.join(_here, module + ".py")):
        try:
            __import__(module).arm()
        except Exception as e:  # a recorder that fails must not take the script with it
            sys.stderr.write(f"tonnage: {module} could not be armed: {e!r}\n")


_arm("TONNAGE_RECORD_DIR", "tonnage_recorder")
_arm("TONNAGE_PUBLISH", "tonnage_hook")
_arm("TONNAGE_VLLM", "tonnage_vllm")
try:
    _next_sitecustomize()
except Exception as e:
    sys.stderr.write(f"tonnage: the environment's own sitecustomize failed: {e!r}\n")
