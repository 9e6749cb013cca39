

# ---- the job: calls without gradients ----------------------------------------------------------------------------------------
def work(model, phases):
    if JOB["kind"] == "forward":
        for step in range(2):
            phases.mark(step, "input")
            b = batch(JOB["batch"])
            b.pop("labels", None)
            phases.mark(step, "prefill")
            how = {} if JOB["model"]["family"] in ("vit", "bert", "roberta", "distilbert") else dict(use_cache=JOB.get("use_cache", True))
            with torch.inference_mode():
                out = model(**b, **how)
            phases.mark(step, "hold")
            del out
        phases.mark(2, "end")
        return
    new, calls = JOB.get("new", 0), dict(n=0)
    if NULL_DEVICE:
        # the end comes by count, as it does on a real device without an end token
        from transformers.generation import utils

        utils.GenerationMixin._has_unfinished_sequences = lambda self, *a, **k: calls["n"] < new
    plain_forward = model.forward

    @functools.wraps(plain_forward)
    def forward(*a, **k):
        calls["n"] += 1
        phases.mark(0, "prefill" if calls["n"] == 1 else "decode")
        return plain_forward(*a, **k)

    model.forward = forward
    phases.mark(0, "input")
    ids = torch.randint(5, 100, (JOB["batch"], JOB["seq"])).cuda()
    model.generation_config.eos_token_id = JOB.get("eos")
    model.generation_config.pad_token_id = 0
    how = {}
    if JOB.get("beams", 1) > 1:
        how["num_beams"] = JOB["beams"]
    if JOB.get("cache") == "static":
        how.update(cache_implementation="static", disable_compile=True)
    mask = [torch.ones_like(ids)]  # only the call holds it
    with torch.inference_mode():
        model.generate(ids, attention_mask=mask.pop(), max_new_tokens=new, do_sample=bool(JOB.get("sample")), use_cache=JOB.get("use_cache", True), **how)
    phases.mark(1, "end")
