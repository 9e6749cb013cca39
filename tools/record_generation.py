#!/usr/bin/env python3
"""Records a generation (or a plain forward call) that the recording tool of groundtruth/torch-trace-dev.jsonl has no switches for:
other caches, beams, sampling, quantised weights, encoder-decoder models, hand-written loops. One job a process:

    tools/record_generation.py NULLCUDA CASE.json [--id ROW] [--trace OUT.jsonl.gz] > RECORD.json

NULLCUDA is the folder of that tool (oracle.py and models.py), which needs a GPU or a null CUDA device. CASE.json is a record's
`config` with these fields beside the documented ones:
    cache       cache_implementation (static, offloaded, quantized, ...), with cache_config: its options
    beams, sample, eos (end token), use_cache, mask
    quant       "int8" (bitsandbytes' LLM.int8) beside nf4
    head        "base": the model without a head (an embedding model); "embedding": with mean pooling over the mask; "classification": a
                decoder's sequence classification
    model.family also gpt_per_head (reference_models.py), deepseek_v2, deepseek_v3, gpt_oss, modernbert
The run is unobserved (no operator names in its trace). Values are not computed on a null device, so a generation ends by count.
"""
import importlib.metadata as md, json, os, sys

sys.path.insert(0, sys.argv[1])
case, flags = json.load(open(sys.argv[2])), sys.argv[3:]
case = case.get("config", case)
option = lambda n: flags[flags.index(n) + 1] if n in flags else None
trace, row = option("--trace"), option("--id")
sys.path.insert(1, os.path.dirname(os.path.abspath(__file__)))
sys.argv = sys.argv[:1]

import contextlib, functools, torch, transformers as T
import torch.nn as nn
import models as M, oracle

oracle.HERE = sys.path[0]
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
family, args = case["model"]["family"], case["model"].get("args", {})

# ---- models
configs = {"deepseek_v2": "DeepseekV2Config", "deepseek_v3": "DeepseekV3Config", "gpt_oss": "GptOssConfig", "modernbert": "ModernBertConfig"}
hf_config = M.hf_config
M.hf_config = lambda fam, a: getattr(T, configs[fam])(**a) if fam in configs else hf_config(fam, a)
build = M.build


def built(m, precision, attn):
    dtype = TYPES.get(precision, torch.float32)
    if family == "gpt_per_head":
        import reference_models
        with torch.device("meta"):
            return reference_models.GptPerHead(**args).to(dtype)
    if case["model"].get("head") == "classification":
        with torch.device("meta"):
            return T.AutoModelForSequenceClassification.from_config(M.hf_config(family, args), attn_implementation=attn, dtype=dtype)
    if case["model"].get("head") in ("base", "embedding"):
        with torch.device("meta"):
            cls = {"t5": T.T5EncoderModel}.get(family)
            if cls:
                return cls._from_config(M.hf_config(family, args), attn_implementation=attn, dtype=dtype)
            return T.AutoModel.from_config(M.hf_config(family, args), attn_implementation=attn, dtype=dtype)
    if family == "modernbert":
        with torch.device("meta"):
            cls = {"mlm": T.ModernBertForMaskedLM}.get(case["model"].get("head"), T.ModernBertForSequenceClassification)
            return cls._from_config(M.hf_config(family, args), attn_implementation=attn, dtype=dtype)
    return build(m, precision, attn)


M.build = built

if case.get("quant") == "int8":
    import bitsandbytes as bnb

    def int8(model, skip=("lm_head",)):
        for mod in list(model.modules()):
            for name, c in list(mod.named_children()):
                if type(c) is nn.Linear and name not in skip:
                    q = bnb.nn.Linear8bitLt(c.in_features, c.out_features, bias=c.bias is not None, has_fp16_weights=False, device="meta")
                    w = torch.empty(c.weight.shape, dtype=torch.float16)
                    q.weight = bnb.nn.Int8Params(w, requires_grad=False, has_fp16_weights=False).to("cuda")
                    if c.bias is not None:
                        q.bias = nn.Parameter(torch.empty(c.bias.shape, dtype=c.weight.dtype, device="cuda"))
                    q.requires_grad_(False)
                    setattr(mod, name, q)
                    del w
        return M.to_cuda(model)
    M.to_cuda, to_cuda = (lambda m, *a: int8(m) if not getattr(m, "packed", False) else to_cuda(m, *a)), M.to_cuda


    def int8_once(model, *a):
        return to_cuda(model, *a)
    # inside int8 the plain one
    int8.__globals__["M"] = type("Plain", (), {"to_cuda": staticmethod(to_cuda)})


# ---- the call
def by_hand(model, ids, new, block):
    """The usual loop: crop, call, last logits, softmax, draw, append."""
    for _ in range(new):
        cond = ids[:, -block:]
        logits, loss = model(cond)
        logits = logits[:, -1, :]
        probs = torch.nn.functional.softmax(logits, dim=-1)
        next_ids = torch.multinomial(probs, num_samples=1)
        ids = torch.cat((ids, next_ids), dim=1)
    return ids


def pooled(model, batch):
    """Mean pooling over the mask, normalised (sentence-transformers' usual head)."""
    out = model(**batch)
    hidden, mask = out.last_hidden_state, batch["attention_mask"]
    wide = mask.unsqueeze(-1).expand(hidden.size()).to(hidden.dtype)
    mean = torch.sum(hidden * wide, 1) / torch.clamp(wide.sum(1), min=1e-9)
    return torch.nn.functional.normalize(mean, p=2, dim=1)


def tokens(b, s):
    return {"input_ids": torch.randint(5, 100, (b, s)), "attention_mask": torch.ones(b, s, dtype=torch.long)}


def infer(c, model, rec):
    b, s, new = c["batch"], c.get("seq"), c.get("new", 0)
    n = [0]
    if c["kind"] == "forward":
        for step in range(2):
            rec.mark(step, "input")
            if c["model"].get("head") in ("base", "embedding", "classification"):
                batch = {k: v.cuda() for k, v in tokens(b, s).items()}
            else:
                batch = oracle.make_batch(c, c["model"])
                batch.pop("labels", None)
                if family == "modernbert":
                    batch["attention_mask"] = torch.ones(b, s, dtype=torch.long, device="cuda")
            rec.tag_many("inputs", batch.values())
            rec.mark(step, "prefill")
            with torch.inference_mode():
                out = pooled(model, batch) if c["model"].get("head") == "embedding" else model(**batch)
            rec.mark(step, "hold")
            del out
        rec.mark(2, "end")
        return
    forward = model.forward

    def counted(*a, **k):
        n[0] += 1
        rec.mark(0, "prefill" if n[0] == 1 else "decode", 0)
        return forward(*a, **k)
    model.forward = functools.wraps(forward)(counted)
    rec.mark(0, "input")
    if family == "whisper":
        ids = torch.randn(b, 80, 3000, dtype=TYPES.get(c["precision"], torch.float32)).cuda()
    else:
        ids = torch.randint(5, 100, (b, s)).cuda()
    rec.tag_many("inputs", [ids])
    if family == "gpt_per_head":
        with torch.inference_mode():
            out = by_hand(model, ids, new, args.get("block_size", 256))
        rec.mark(1, "end")
        return
    if oracle.NULL is not None:
        import transformers.generation.utils as G
        G.GenerationMixin._has_unfinished_sequences = lambda self, *a, **k: n[0] < new
    model.generation_config.eos_token_id = c.get("eos")
    model.generation_config.pad_token_id = 0
    kw = {}
    if c.get("beams", 1) > 1:
        kw["num_beams"] = c["beams"]
    if c.get("cache"):
        kw["cache_implementation"] = c["cache"]
        if c["cache"] == "static":
            kw["disable_compile"] = True
    if c.get("cache_config"):
        kw["cache_config"] = c["cache_config"]
    if family == "t5":
        model.generation_config.decoder_start_token_id = 0
    mask = [torch.ones_like(ids)] if family != "whisper" else [None]
    if c.get("mask") == "pad":
        mask[0][0, :4] = 0
    kw.update(max_new_tokens=new, do_sample=bool(c.get("sample")), use_cache=c.get("use_cache", True))
    if family == "whisper":
        model.generation_config.decoder_start_token_id = 1
        with torch.inference_mode():
            out = T.generation.utils.GenerationMixin.generate(model, ids, **kw)
        rec.mark(1, "end")
        return
    with torch.inference_mode():
        # only the call holds the mask
        out = model.generate(ids, attention_mask=mask.pop(), **kw)
    rec.mark(1, "end")


oracle.infer = infer
sys.argv.append("--plain")
if trace:
    # only the allocator's history, no dispatch mode
    class Quiet(contextlib.nullcontext):
        def __init__(self, *a):
            super().__init__()

        def hooks(self, model):
            pass
    oracle.Annotate = Quiet
r = oracle.run(case, annotate=bool(trace), trace_to=trace)
r.pop("seconds", None)
if row:
    names = ("torch", "transformers", "peft", "accelerate", "bitsandbytes")
    r = dict(schema="torch-run", id=row, config=case, versions={n: md.version(n) for n in names} | {"transformers": T.__version__}, **r,
             source="real torch host code and real CUDACachingAllocator over a null CUDA runtime (no GPU)")
    r["config"]["gpu"] = {"a100": "a100-sxm4-80gb"}.get(r["config"].get("gpu"), r["config"].get("gpu"))
print(json.dumps(r))
