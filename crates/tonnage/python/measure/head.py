import functools
import json
import os
import sys
import tempfile

import torch
from torch import nn

# on a null device values are not computed: what decides by values is told the answer below
NULL_DEVICE = bool(os.environ.get("TONNAGE_NULL_DEVICE"))


# ---- figures -------------------------------------------------------------------------------------------------------------
class Phases:
    """At each mark the running phase is closed with the allocator's peaks since the mark before."""

    def __init__(self):
        self.rows, self.now = [], None

    def mark(self, step, phase, mb=0):
        s = torch.cuda.memory_stats()
        if self.now is not None:
            row = dict(step=self.now[0], mb=self.now[2], phase=self.now[1])
            for what in ("allocated", "reserved", "requested"):
                row["peak_" + what] = s[f"{what}_bytes.all.peak"]
                row["end_" + what] = s[f"{what}_bytes.all.current"]
            self.rows.append(row)
        torch.cuda.reset_peak_memory_stats()
        self.now = (step, phase, mb)


def driver_bytes():
    """What the driver says that this card holds; None where there is no NVML."""
    try:
        free, total = torch.cuda.mem_get_info()
        return total - free
    except RuntimeError:
        return None


def blocks(tensors):
    """Bytes of the tensors' storages on the device, each rounded up to 512, each storage once."""
    found = {}
    for t in tensors:
        if t.is_cuda and t.numel():
            s = t.untyped_storage()
            found[s.data_ptr()] = (s.nbytes() + 511) // 512 * 512
    return sum(found.values())


def figures(phases, model, extra):
    work = [r for r in phases.rows if r["step"] >= 0]
    top = max(work, key=lambda r: r["peak_allocated"])
    steps = {}
    for r in work:
        d = steps.setdefault(str(r["step"]), {})
        for k in ("allocated", "reserved"):
            d["peak_" + k] = max(d.get("peak_" + k, 0), r["peak_" + k])
    return dict(
        param_count=extra["param_count"],
        trainable_count=sum(p.numel() for p in model.parameters() if p.requires_grad),
        param_bytes=extra["param_bytes"],
        buffer_bytes=extra["buffer_bytes"],
        peak_allocated_bytes=top["peak_allocated"],
        peak_at={k: top[k] for k in ("step", "mb", "phase")},
        peak_reserved_bytes=max(r["peak_reserved"] for r in phases.rows),
        peak_requested_bytes=max(r["peak_requested"] for r in work),
        load_peak_allocated_bytes=max(r["peak_allocated"] for r in phases.rows if r["step"] < 0),
        per_step=steps,
        phases=phases.rows,
        device=extra["device"],
    )


# ---- the model: made from its configuration; no weights are fetched, because shapes are what matters --------------------
def place(model, memo=None):
    """Moves an empty model to the device: children first, then own parameters, then own buffers; ties are kept."""
    memo = {} if memo is None else memo
    for child in model.children():
        place(child, memo)
    for own in (model._parameters, model._buffers):
        for name, t in own.items():
            if t is None or t.device.type != "meta":
                continue
            if id(t) not in memo:
                new = torch.empty_like(t, device="cuda")
                if isinstance(t, nn.Parameter):
                    new = nn.Parameter(new, requires_grad=t.requires_grad)
                # the old tensor is kept, so that its id stays its own
                memo[id(t)] = (t, new)
            own[name] = memo[id(t)][1]
    return model


def build():
    import transformers

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(JOB["precision"], torch.float32)
    args = {k: v for k, v in JOB["model"]["args"].items() if k not in ("model_type", "architectures", "torch_dtype", "dtype", "transformers_version")}
    family = {"gemma3": "gemma3_text"}.get(JOB["model"]["family"], JOB["model"]["family"])
    config = transformers.AutoConfig.for_model(family, **args)
    head = JOB["model"].get("head")
    kind = {
        "bert": "AutoModelForSequenceClassification", "roberta": "AutoModelForSequenceClassification", "distilbert": "AutoModelForSequenceClassification",
        "vit": "AutoModelForImageClassification", "t5": "AutoModelForSeq2SeqLM", "whisper": "AutoModelForSpeechSeq2Seq",
    }.get(family, "AutoModelForCausalLM")
    if head == "mlm":
        kind = "AutoModelForMaskedLM"
    with torch.device("meta"):
        return getattr(transformers, kind).from_config(config, attn_implementation=JOB.get("attn", "sdpa"), dtype=dtype)
