#!/usr/bin/env python3
"""Records a fine-tuning job that the recording tool of groundtruth/torch-trace-dev.jsonl has no switches for: DoRA, LLM.int8(), FP4,
single quantisation, targets as one string, frozen layers. One job a process:

    tools/record_finetune.py NULLCUDA CASE.json [--plain] [--trace OUT.jsonl.gz] > RECORD.json

NULLCUDA is the folder of that tool (oracle.py and models.py), which needs a GPU or a null CUDA device. CASE.json is a record's
`config` with these fields beside the documented ones: quant (nf4, fp4, int8), double_quant, threshold (LLM.int8; no outlier is ever
found), peft.dora, peft.rslora, peft.exclude, peft.layers, peft.targets as a string, freeze {layers, embeddings}.
Without --trace the run is unobserved; with it, traced (gradients accumulate out of place) unless --plain.
"""
import importlib.metadata as md, json, sys

sys.path.insert(0, sys.argv[1])
case, flags = json.load(open(sys.argv[2])), sys.argv[3:]
trace = flags[flags.index("--trace") + 1] if "--trace" in flags else None
sys.argv = sys.argv[:1]

import contextlib, peft, torch
import bitsandbytes as bnb
from torch import nn
import oracle

oracle.HERE = sys.path[0]
config = json.loads(json.dumps(case))
kind = case.get("quant")


def quantize(model, skip=("lm_head",)):
    if kind == "nf4" and case.get("double_quant", True):
        return original(model)
    for _, mod in list(model.named_modules()):
        for name, c in list(mod.named_children()):
            if type(c) is not nn.Linear or name in skip:
                continue
            w = torch.empty(c.weight.shape, dtype=torch.bfloat16)
            bias = c.bias is not None
            if kind == "int8":
                q = bnb.nn.Linear8bitLt(c.in_features, c.out_features, bias=bias, has_fp16_weights=False,
                                        threshold=case.get("threshold", 0.0), device="meta")
                q.weight = bnb.nn.Int8Params(w, requires_grad=False, has_fp16_weights=False).to("cuda")
            else:
                double = case.get("double_quant", True)
                q = bnb.nn.Linear4bit(c.in_features, c.out_features, bias=bias, compute_dtype=torch.bfloat16,
                                      compress_statistics=double, quant_type=kind, device="meta")
                q.weight = bnb.nn.Params4bit(w, requires_grad=False, compress_statistics=double, quant_type=kind, module=q).to("cuda")
            if bias:
                q.bias = nn.Parameter(torch.empty(c.bias.shape, dtype=torch.bfloat16, device="cuda"))
            q.requires_grad_(False)
            setattr(mod, name, q)
            del w
    if kind == "int8":
        model.is_loaded_in_8bit = True
    return oracle.M.to_cuda(model)


original, oracle.M.quantize_nf4 = oracle.M.quantize_nf4, quantize
if kind:
    config["quant"] = "nf4"        # the branch of the tool's set-up
extra = {a: case["peft"][b] for a, b in (("use_dora", "dora"), ("use_rslora", "rslora"), ("exclude_modules", "exclude"),
         ("layers_to_transform", "layers")) if case.get("peft", {}).get(b)}
Lora = peft.LoraConfig
peft.LoraConfig = lambda **kw: Lora(**kw, **extra)

if case.get("freeze"):
    to_cuda = oracle.M.to_cuda

    def freeze(model, *memo):
        model = to_cuda(model, *memo)
        if memo:
            return model
        base = next(m for m in model.modules() if isinstance(m, nn.ModuleList))
        for layer in base[:case["freeze"]["layers"]]:
            layer.requires_grad_(False)
        if case["freeze"].get("embeddings"):
            for m in model.modules():
                if m is base:
                    break
                if isinstance(m, nn.Embedding):
                    m.requires_grad_(False)
        return model
    oracle.M.to_cuda = freeze

if case.get("threshold"):
    found = torch.Tensor.any

    class Nothing:
        """The answer of `any()`, read as false."""
        def __init__(self, t): self.t = t
        def __bool__(self): return False
    torch.Tensor.any = lambda self, *a, **k: found(self, *a, **k) if a or k else Nothing(found(self))

if "--plain" in flags:

    class Unobserved(contextlib.nullcontext):
        """In the place of the dispatch mode, under which gradients accumulate out of place."""
        def hooks(self, model): pass
    oracle.Annotate = lambda rec, model: Unobserved()

out = sys.stdout
with contextlib.redirect_stdout(sys.stderr):
    r = oracle.run(config, annotate=trace is not None, trace_to=trace)
keep = ["param_count", "trainable_count", "param_bytes", "buffer_bytes", "peak_allocated_bytes", "peak_at", "peak_reserved_bytes",
        "peak_requested_bytes", "load_peak_allocated_bytes", "per_step", "phases"]
versions = {p: md.version(p) for p in ("torch", "transformers", "peft", "accelerate", "bitsandbytes")}
record = {"schema": "torch-run", "id": case.pop("id", "job"), "config": case, "versions": versions, **{k: r[k] for k in keep},
          "source": "real torch host code and real CUDACachingAllocator over a null CUDA runtime (no GPU)"}
json.dump(record, out)
print(file=out)
