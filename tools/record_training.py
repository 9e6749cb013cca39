#!/usr/bin/env python3
"""Records a training job that the recording tool of groundtruth/torch-trace-dev.jsonl has no switches for: other ways of
checkpointing, other losses, other optimizers, other places of `zero_grad()`. One job a process:

    tools/record_training.py NULLCUDA CASE.json [--plain] [--trace OUT.jsonl.gz] > RECORD.json

NULLCUDA is the folder of that tool (oracle.py and models.py), which needs a GPU or a null CUDA device. CASE.json is a record's
`config` with these fields beside the documented ones:
    ckpt        {every: N, reentrant: true, selective: true} in the place of true
    zero_grad   "before_backward": `zero_grad()` stands between forward and backward (plain loop)
    loss        "chunked" with loss_chunks: N (below); "cut" (cut-cross-entropy)
    optim       also lion (lion-pytorch), muon (torch.optim), and bitsandbytes' (BNB below)
Without --trace the run is unobserved; with it, traced (gradients accumulate out of place) unless --plain.
"""
import importlib.metadata as md, json, sys

sys.path.insert(0, sys.argv[1])
case, flags = json.load(open(sys.argv[2])), sys.argv[3:]
trace = flags[flags.index("--trace") + 1] if "--trace" in flags else None
sys.argv = sys.argv[:1]

import contextlib, functools, peft, torch, transformers
import torch.nn.functional as F
from torch.utils.checkpoint import create_selective_checkpoint_contexts
import oracle

oracle.HERE = sys.path[0]
config = json.loads(json.dumps(case))

# ---- checkpointing
how = case.get("ckpt")
if isinstance(how, dict):
    aten = torch.ops.aten
    kept = [aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default,
            aten._scaled_dot_product_flash_attention.default, aten._scaled_dot_product_efficient_attention.default,
            aten._scaled_dot_product_cudnn_attention.default]
    enable = transformers.PreTrainedModel.gradient_checkpointing_enable

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs=None, **_):
        kw = {"use_reentrant": bool(how.get("reentrant"))}
        if how.get("selective"):
            kw["context_fn"] = functools.partial(create_selective_checkpoint_contexts, kept)
        enable(self, gradient_checkpointing_kwargs=kw)
        # every_n_layers of transformers 5; scripts for 4 do it by hand
        layers = [m for m in self.modules() if type(m).__mro__[1].__name__ == "GradientCheckpointingLayer"]
        for i, m in enumerate(layers):
            m.gradient_checkpointing = i % how.get("every", 1) == 0
    transformers.PreTrainedModel.gradient_checkpointing_enable = gradient_checkpointing_enable
    prepare = peft.prepare_model_for_kbit_training
    peft.prepare_model_for_kbit_training = lambda m, **kw: prepare(
        m, **{**kw, "gradient_checkpointing_kwargs": {"use_reentrant": bool(how.get("reentrant"))}})


# ---- losses
def chunked_loss(hidden, head, labels, n):
    """torchtune 0.6.1, modules/loss/ce_chunked_output_loss.py, around a model's head."""
    logits = [head(x) for x in hidden.chunk(n, dim=1)]
    labels = F.pad(labels, (0, 1), value=-100)[..., 1:].contiguous()
    return of_chunks(logits, labels, n)


def of_chunks(logits, labels, n):
    total_elements = (labels != -100).sum()
    labels = [t.reshape(-1) for t in labels.chunk(n, dim=1)]
    logits = [x.reshape(-1, x.size(-1)) for x in logits]
    total = 0.0
    for x, t in zip(logits, labels):
        total += F.cross_entropy(x.float(), t, ignore_index=-100, reduction="sum")
    return total / total_elements


def cut_loss(hidden, head, labels, n):
    return linear_cross_entropy(hidden, head.weight, labels, shift=True)


def other_loss(model, batch, loss, n):
    body = getattr(model, model.base_model_prefix)
    hidden = body(**{k: v for k, v in batch.items() if k != "labels"}).last_hidden_state
    return loss(hidden, model.lm_head, batch["labels"], n)


if case.get("loss") in ("chunked", "cut"):
    loss = {"chunked": chunked_loss, "cut": cut_loss}[case["loss"]]
    if case["loss"] == "cut":
        # no kernel runs, so nothing is counted, sorted by a compiled kernel, or tuned
        import triton
        from triton.runtime.autotuner import Autotuner, Heuristics
        for kernel in (triton.JITFunction, Autotuner, Heuristics):
            kernel.run = lambda *a, **k: None
        import cut_cross_entropy.cce as cce
        from cut_cross_entropy import linear_cross_entropy
        cce.sort_logit_avg = lambda x: torch.argsort(x).to(torch.int32)
        found = torch.Tensor.nonzero

        def nonzero(self):
            """All of them: the count is read back from a kernel that did not run."""
            found(self)
            return torch.empty((self.numel(), self.ndim), dtype=torch.int64, device=self.device)
        torch.Tensor.nonzero = nonzero
    oracle.loss_of = lambda c, m, model, batch: (None, other_loss(model, batch, loss, case.get("loss_chunks", 8)))
    config.pop("loss")


# ---- optimizers
BNB = dict(adamw32bit="AdamW32bit", lion32bit="Lion32bit", lion8bit="Lion8bit", paged_lion32bit="PagedLion32bit", paged_lion8bit="PagedLion8bit",
           ademamix="AdEMAMix", ademamix8bit="AdEMAMix8bit", paged_ademamix32bit="AdEMAMix",
           paged_ademamix8bit="PagedAdEMAMix8bit", rmsprop_bnb="RMSprop32bit", rmsprop_bnb_8bit="RMSprop8bit")
make_opt = oracle.make_opt


def make_other(c, params):
    name, params = c["optim"], [p for p in params if p.requires_grad]
    if name in BNB:
        import bitsandbytes as bnb
        extra = {"is_paged": True} if name == "paged_ademamix32bit" else {}
        return getattr(bnb.optim, BNB[name])(params, lr=1e-4, **extra)
    if name == "lion":
        import lion_pytorch
        return lion_pytorch.Lion(params, lr=1e-4)
    if name == "muon":      # matrices only; the others get no step, but their gradients go as well

        def zero_grad(set_to_none=True):
            for p in params:
                p.grad = None
        opt = torch.optim.Muon([p for p in params if p.ndim == 2], lr=1e-4)
        opt.zero_grad = zero_grad
        return opt
    return make_opt(c, params)


oracle.make_opt = make_other


def train_plain(c, model, rec):
    mark = rec.mark
    if c.get("zero_grad") != "before_backward":
        return original(c, model, rec)
    opt = oracle.make_opt(c, model.parameters())
    amp = {"amp_bf16": torch.bfloat16, "amp_fp16": torch.float16}.get(c["precision"])
    for step in range(c.get("steps", 3)):
        mark(step, "input", 0)
        batch = oracle.make_batch(c, c["model"])
        rec.tag_many("inputs", batch.values())
        mark(step, "forward", 0)
        with torch.autocast("cuda", dtype=amp) if amp else contextlib.nullcontext():
            out, loss = oracle.loss_of(c, c["model"], model, batch)
        if c.get("hold", "loss") == "loss":
            out = None
        mark(step, "zero_grad", 0)
        opt.zero_grad(set_to_none=c.get("set_to_none", True))
        mark(step, "backward", 0)
        loss.backward()
        mark(step, "optimizer")
        opt.step()
        oracle.tag_opt(rec, opt)
    mark(c.get("steps", 3), "end")


original, oracle.train_plain = oracle.train_plain, train_plain

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
names = ["torch", "transformers", "peft", "accelerate", "bitsandbytes"]
names += {"cut": ["cut-cross-entropy", "triton"]}.get(case.get("loss"), [])
names += {"lion": ["lion-pytorch"]}.get(case["optim"], [])
record = {"schema": "torch-run", "id": case.pop("id", "job"), "config": case, "versions": {p: md.version(p) for p in names}, **{k: r[k] for k in keep},
          "source": "real torch host code and real CUDACachingAllocator over a null CUDA runtime (no GPU)"}
json.dump(record, out)
print(file=out)
