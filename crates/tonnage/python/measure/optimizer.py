

def optimizer(parameters):
    name, lr = JOB["optim"], 1e-4
    parameters = [p for p in parameters if p.requires_grad]
    if name in ("adamw_foreach", "adamw_fused", "adamw_forloop"):
        how = dict(adamw_fused=dict(fused=True), adamw_forloop=dict(foreach=False)).get(name, {})
        return torch.optim.AdamW(parameters, lr=lr, **how)
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=lr)
    if name == "sgd_momentum":
        return torch.optim.SGD(parameters, lr=lr, momentum=0.9)
    if name in ("rmsprop", "adagrad"):
        return dict(rmsprop=torch.optim.RMSprop, adagrad=torch.optim.Adagrad)[name](parameters, lr=lr)
    if name == "adafactor":
        from transformers.optimization import Adafactor

        return Adafactor(parameters, lr=lr, relative_step=False, scale_parameter=False)
    import bitsandbytes as bnb

    return dict(adamw8bit=bnb.optim.AdamW8bit, paged_adamw8bit=bnb.optim.PagedAdamW8bit, paged_adamw32bit=bnb.optim.PagedAdamW32bit)[name](parameters, lr=lr)
