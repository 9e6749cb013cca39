"""Loaded by Python at start-up because `tonnage dry-run` puts this folder on PYTHONPATH: arms the recorder, then runs the
environment's own sitecustomize, which this file hides."""
import os
import sys

_here = os.path.dirname(os.path.abspath(__file__))


def _next_sitecustomize():
    import importlib.machinery
    import importlib.util

    elsewhere = [p for p in sys.path if os.path.abspath(p or ".") != _here]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", elsewhere)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


if os.environ.get("TONNAGE_RECORD_DIR"):
    try:
        import tonnage_recorder

        tonnage_recorder.arm()
    except Exception as e:  # a recorder that fails must not take the script with it
        sys.stderr.write(f"tonnage: the recorder could not be armed: {e!r}\n")
try:
    _next_sitecustomize()
except Exception as e:
    sys.stderr.write(f"tonnage: the environment's own sitecustomize failed: {e!r}\n")
