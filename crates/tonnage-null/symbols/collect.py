"""Writes the lists of this folder: collect.py NVIDIA_DIR... (the folders `site-packages/nvidia` of CUDA wheels, oldest first).

One list for each library: the C functions that it exports, in all the versions given and in the lists as they are.
workspaces.txt: functions of the headers that ask for a workspace: place of the answer among the integer arguments,
its width in bytes, how many answers follow one another. The driver's list comes from cuda.h.
"""
import glob, os, re, subprocess, sys

here = os.path.dirname(os.path.abspath(__file__))
libs = {
    "cudart": "libcudart.so.*", "cublas": "libcublas*.so.*", "cudnn": "libcudnn.so.*", "cusolver": "libcusolver.so.*",
    "cusparse": "libcusparse.so.*", "cufft": "libcufft.so.*", "curand": "libcurand.so.*", "nccl": "libnccl.so.*", "cusparselt": "libcusparseLt.so.*",
}
prefix = {"cudart": r"(cuda|__cuda)", "cusparselt": "cusparseLt"}


def merge(name, found):
    path = os.path.join(here, name + ".txt")
    old = open(path).read().split() if os.path.exists(path) else []
    open(path, "w").write("".join(n + "\n" for n in sorted(set(old) | set(found))))


for name, pattern in libs.items():
    found = set()
    for top in sys.argv[1:]:
        for lib in glob.glob(os.path.join(top, "*", "lib", pattern)):
            for line in subprocess.run(["nm", "-D", "--defined-only", lib], capture_output=True, text=True).stdout.splitlines():
                kind, symbol = line.split()[-2], line.split()[-1].split("@")[0]
                if kind in "TWi" and re.fullmatch(prefix.get(name, name) + r"[A-Za-z0-9_]*", symbol):
                    found.add(symbol)
    merge(name, found)

answers, driver = {}, set()
for top in sys.argv[1:]:
    for header in glob.glob(os.path.join(top, "*", "include", "*.h")):
        text = open(header, errors="replace").read()
        if os.path.basename(header) == "cuda.h":
            driver |= set(re.findall(r"CUresult\s+CUDAAPI\s+(cu\w+)\s*\(", text))
            driver |= set(re.findall(r"#define\s+cu\w+\s+(cu\w+_v\d)\b", text))
        if not re.match(r"(cusolver|cusparse|cufft|curand|cublas|cudnn)", os.path.basename(header)):
            continue
        text = re.sub(r"/\*.*?\*/|//[^\n]*", "", text, flags=re.S)
        for name, args in re.findall(r"\b((?:cusolver|cusparse|cufft)\w+)\s*\(([^()]*)\)\s*;", text):
            if not re.search(r"[bB]ufferSize|MakePlan", name):
                continue
            place, hits = 0, []
            for a in args.split(","):
                a = " ".join(a.split())
                pointer = "*" in a
                if not pointer and re.match(r"(const )?(float|double|cuComplex|cuDoubleComplex|cufftComplex)\b", a):
                    continue
                if re.match(r"(size_t|int) ?\* ?(lwork|bufferSize|pBufferSize\w*|workspaceInBytes\w*|workSize|workspaceSize|sizeInBytes)$", a, re.I):
                    hits.append((place, 8 if a.startswith("size_t") else 4))
                place += 1
            if hits:
                answers[name] = (hits[0][0], hits[0][1], 2 if len(hits) > 1 and hits[1][0] == hits[0][0] + 1 else 1)
merge("cuda", driver)
path = os.path.join(here, "workspaces.txt")
for line in open(path) if os.path.exists(path) else ():
    n, *rest = line.split()
    answers.setdefault(n, tuple(map(int, rest)))
open(path, "w").write("".join(f"{n} {p} {w} {c}\n" for n, (p, w, c) in sorted(answers.items())))
