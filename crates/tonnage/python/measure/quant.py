

# ---- 4-bit weights: each goes through bitsandbytes' own packing, as on loading ---------------------------------------------
def quantise(model, skip=("lm_head",)):
    import bitsandbytes as bnb

    how = dict(compress_statistics=JOB.get("double_quant", True), quant_type=JOB["quant"])
    for _, parent in list(model.named_modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is not nn.Linear or name in skip:
                continue
            new = bnb.nn.Linear4bit(layer.in_features, layer.out_features, bias=layer.bias is not None, compute_dtype=torch.bfloat16, device="meta", **how)
            weight = torch.empty(layer.weight.shape, dtype=torch.bfloat16)
            new.weight = bnb.nn.Params4bit(weight, requires_grad=False, module=new, **how).to("cuda")
            if layer.bias is not None:
                new.bias = nn.Parameter(torch.empty(layer.bias.shape, dtype=torch.bfloat16, device="cuda"))
            new.requires_grad_(False)
            setattr(parent, name, new)
            del weight
    return model
