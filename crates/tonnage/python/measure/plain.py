

# ---- the job: a training loop written by hand ------------------------------------------------------------------------------
def work(model, phases):
    import contextlib

    opt = optimizer(model.parameters())
    half = {"amp_bf16": torch.bfloat16, "amp_fp16": torch.float16}.get(JOB["precision"])
    scaler = torch.amp.GradScaler("cuda") if JOB["precision"] == "amp_fp16" else None
    accumulation, steps = JOB.get("accum", 1), JOB.get("steps", 3)
    trained = [p for p in model.parameters() if p.requires_grad]
    for step in range(steps):
        for mb in range(accumulation):
            phases.mark(step, "input", mb)
            b = batch(JOB["batch"])
            phases.mark(step, "forward", mb)
            with torch.autocast("cuda", dtype=half) if half else contextlib.nullcontext():
                out = model(**b)
                loss = out.loss
                if accumulation > 1:
                    loss = loss / accumulation
            if JOB.get("hold", "loss") == "loss":
                out = None
            phases.mark(step, "backward", mb)
            (scaler.scale(loss) if scaler else loss).backward()
        if JOB.get("clip"):
            phases.mark(step, "clip")
            if scaler:
                scaler.unscale_(opt)
            torch.nn.utils.clip_grad_norm_(trained, JOB["clip"])
        phases.mark(step, "optimizer")
        if scaler:
            scaler.step(opt)
            scaler.update()
        else:
            opt.step()
        phases.mark(step, "zero_grad")
        opt.zero_grad(set_to_none=JOB.get("set_to_none", True))
    phases.mark(steps, "end")
