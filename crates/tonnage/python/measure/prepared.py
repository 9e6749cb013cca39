    extra["param_bytes"] = blocks(model.parameters())
    extra["buffer_bytes"] = blocks(model.buffers())
    return model, extra


# ---- data ----------------------------------------------------------------------------------------------------------------
def batch(size, device="cuda"):
    family, seq = JOB["model"]["family"], JOB.get("seq", 0)

    def ids(*shape, high=100):
        return torch.randint(0, high, shape)

    if family == "vit":
        b = dict(pixel_values=torch.randn(size, 3, 224, 224), labels=ids(size, high=2))
    elif family in ("bert", "roberta", "distilbert"):
        labels = ids(size, seq) if JOB["model"].get("head") == "mlm" else ids(size, high=2)
        b = dict(input_ids=ids(size, seq), attention_mask=torch.ones(size, seq, dtype=torch.long), labels=labels)
    elif family == "t5":
        b = dict(input_ids=ids(size, seq), attention_mask=torch.ones(size, seq, dtype=torch.long), labels=ids(size, JOB.get("tgt", seq // 4)))
    else:
        b = dict(input_ids=ids(size, seq), labels=ids(size, seq))
        if JOB.get("mask"):
            b["attention_mask"] = torch.ones(size, seq, dtype=torch.long)
            if JOB["mask"] == "pad":
                b["attention_mask"][0, :4] = 0
    return {k: v.to(device) for k, v in b.items()}
