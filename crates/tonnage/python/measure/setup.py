

def prepare(phases):
    """The model as the job wants it, and figures of its weights."""
    torch.cuda.init()
    extra = dict(device=dict(context_bytes=driver_bytes()))  # before the first tensor
    phases.mark(-1, "load")
    model = build()
