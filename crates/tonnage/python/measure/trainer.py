

# ---- the job: transformers' Trainer ----------------------------------------------------------------------------------------
class Rows(torch.utils.data.Dataset):
    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        JOB.setdefault("mask", "ones")
        return {k: v[0] for k, v in batch(1, "cpu").items()}


def work(model, phases):
    import transformers

    names = dict(
        adamw_foreach="adamw_torch", adamw_fused="adamw_torch_fused", adamw8bit="adamw_bnb_8bit", paged_adamw8bit="paged_adamw_8bit",
        paged_adamw32bit="paged_adamw_32bit")
    steps, accumulation = JOB.get("steps", 3), JOB.get("accum", 1)
    checkpointing = dict(gradient_checkpointing_kwargs={"use_reentrant": False}) if JOB.get("ckpt") else {}
    args = transformers.TrainingArguments(
        output_dir=tempfile.mkdtemp(), max_steps=steps, per_device_train_batch_size=JOB["batch"], gradient_accumulation_steps=accumulation,
        bf16=JOB["precision"] == "amp_bf16", fp16=JOB["precision"] == "amp_fp16", optim=names.get(JOB["optim"], JOB["optim"]),
        max_grad_norm=JOB.get("clip", 1.0) or 0.0, gradient_checkpointing=bool(JOB.get("ckpt")), save_strategy="no", report_to=[], logging_steps=1,
        disable_tqdm=True, dataloader_num_workers=0, learning_rate=1e-4, remove_unused_columns=False, **checkpointing)
    at = dict(step=0, mb=0)

    class Marks(transformers.TrainerCallback):
        def on_step_begin(self, *a, **k):
            at["mb"] = 0

        def on_pre_optimizer_step(self, *a, **k):
            phases.mark(at["step"], "optimizer")

        def on_optimizer_step(self, *a, **k):
            phases.mark(at["step"], "zero_grad")

        def on_step_end(self, *a, **k):
            at["step"] += 1
            phases.mark(at["step"], "between")

        def on_substep_end(self, *a, **k):
            at["mb"] += 1

    trainer = transformers.Trainer(model=model, args=args, train_dataset=Rows(JOB["batch"] * accumulation * steps), callbacks=[Marks()])
    trainer.remove_callback(transformers.PrinterCallback)
    plain_loss, plain_backward = trainer.compute_loss, trainer.accelerator.backward

    def compute_loss(*a, **k):
        phases.mark(at["step"], "forward", at["mb"])
        return plain_loss(*a, **k)

    def backward(*a, **k):
        phases.mark(at["step"], "backward", at["mb"])
        done = plain_backward(*a, **k)
        phases.mark(at["step"], "clip", at["mb"])
        return done

    trainer.compute_loss, trainer.accelerator.backward = compute_loss, backward
    phases.mark(0, "between")
    trainer.train()
    phases.mark(steps, "end")
