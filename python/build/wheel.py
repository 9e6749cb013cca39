"""Builds the package without any other: one module, and the line that arms it at start-up, at the top of site-packages."""
import base64
import hashlib
import os
import tarfile
import zipfile

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
NAME, VERSION = "tonnage_hook", "0.1.0"
FILES = ["tonnage_hook.py", "tonnage_hook.pth"]
SOURCES = [*FILES, "pyproject.toml", "README.md", "build/wheel.py"]


def _read(name):
    with open(os.path.join(HERE, name), "rb") as f:
        return f.read()


def _metadata():
    head = (
        f"Metadata-Version: 2.1\nName: tonnage-hook\nVersion: {VERSION}\n"
        "Summary: Publishes what PyTorch's allocator says of itself\n"
        "License: MIT OR Apache-2.0\nRequires-Python: >=3.8\nDescription-Content-Type: text/markdown\n\n"
    )
    return head.encode() + _read("README.md")


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    info = f"{NAME}-{VERSION}.dist-info"
    parts = {name: _read(name) for name in FILES}
    parts[f"{info}/METADATA"] = _metadata()
    parts[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: tonnage\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    rows = []
    for name, data in parts.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        rows.append(f"{name},sha256={digest},{len(data)}\n")
    parts[f"{info}/RECORD"] = ("".join(rows) + f"{info}/RECORD,,\n").encode()
    wheel = f"{NAME}-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(wheel_directory, wheel), "w", zipfile.ZIP_DEFLATED) as z:
        for name, data in parts.items():
            # no clock: the same sources are the same file
            z.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data)
    return wheel


def build_sdist(sdist_directory, config_settings=None):
    root = f"{NAME}-{VERSION}"
    with tarfile.open(os.path.join(sdist_directory, f"{root}.tar.gz"), "w:gz") as t:
        for name in SOURCES:
            t.add(os.path.join(HERE, name), f"{root}/{name}")
    return f"{root}.tar.gz"
