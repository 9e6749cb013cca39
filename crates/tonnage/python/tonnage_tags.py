"""What is what: which addresses hold parameters, buffers, gradients, optimizer states and inputs."""
from tonnage_state import S, allocations, short


def _place(t):
    """(device, address, bytes) of a tensor's storage; None where it is not on a device."""
    t = getattr(t, "_local_tensor", t)
    if not isinstance(t, S.torch.Tensor) or not t.is_cuda:
        return None
    s = t.untyped_storage()
    p = s.data_ptr()
    return (t.device.index or 0, p, s.nbytes()) if p else None


def tag(category, pairs):
    by_device = {}
    for t, name in pairs:
        try:
            x = _place(t)
        except Exception:
            x = None
        if x:
            by_device.setdefault(x[0], []).append((x[1], x[2], name))
    for d, found in by_device.items():
        S.tags.append((d, allocations(d), category, found))


def tag_model(root):
    P = []
    for n, p in root.named_parameters():
        P.append((p, short(n)))
        q = getattr(p, "quant_state", None)
        if q is not None:
            states = [q, getattr(q, "state2", None)]
            parts = [getattr(s, a, None) for s in states if s is not None for a in ("absmax", "code", "offset")]
            tag("quant_state", [(x, short(n)) for x in parts if x is not None])
    tag("parameters", P)
    counted = _counts()
    if counted["param_count"] >= S.counts.get("param_count", 0):
        S.counts = counted
    tag("buffers", [(b, short(n)) for n, b in root.named_buffers()])


def tag_gradients(optimizer):
    names = {}
    for r in S.roots:
        m = r()
        if m is not None:
            names.update((id(p), short(n)) for n, p in m.named_parameters())
    ps = [p for g in optimizer.param_groups for p in g["params"]]
    tag("gradients", [(p.grad, names.get(id(p), "")) for p in ps if p.grad is not None])


def tag_states(optimizer):
    n = sum(len(v) for v in optimizer.state.values() if hasattr(v, "__len__"))
    if S.step >= 3 and S.tagged_states.get(id(optimizer)) == n:
        return
    S.tagged_states[id(optimizer)] = n
    found = []
    for st in optimizer.state.values():
        if isinstance(st, dict):
            found += [(v, str(k)) for k, v in st.items() if isinstance(v, S.torch.Tensor)]
    tag("optimizer_state", found)


def tag_all():
    """What is alive when the run ends early."""
    for r in S.roots:
        m = r()
        if m is not None:
            tag_model(m)
            tag("gradients", [(p.grad, short(n)) for n, p in m.named_parameters() if p.grad is not None])
    for r in S.optimizers:
        o = r()
        if o is not None:
            S.tagged_states.clear()
            tag_states(o)


def _counts():
    seen, out = set(), dict(param_count=0, trainable_count=0, param_bytes=0, buffer_bytes=0)
    up = lambda n: (n + 511) // 512 * 512
    places = set()
    for r in S.roots:
        m = r()
        if m is None:
            continue
        for p in m.parameters():
            if id(p) in seen:
                continue
            seen.add(id(p))
            out["param_count"] += p.numel()
            if p.requires_grad:
                out["trainable_count"] += p.numel()
        for key, ts in (("param_bytes", m.parameters()), ("buffer_bytes", m.buffers())):
            for t in ts:
                try:
                    x = _place(t)
                except Exception:
                    x = None
                if x and x not in places:
                    places.add(x)
                    out[key] += up(x[2])
    out["model"] = ", ".join(type(r()).__name__ for r in S.roots if r() is not None)
    return out


