"""The cases of record_kernels.py, one function a group."""
import torch

A = torch.ops.aten
DT = dict(f64=torch.float64, f32=torch.float32, f16=torch.float16, bf16=torch.bfloat16, i64=torch.int64, i32=torch.int32, u8=torch.uint8, bool=torch.bool)


def E(shape, dtype="f32"):
    return torch.empty(shape, dtype=DT[dtype], device="cuda")


def strided(shape, strides, offset, dtype):
    n = offset + 1 + sum((a - 1) * b for a, b in zip(shape, strides))
    return E((n,), dtype).as_strided(shape, strides, offset)


def reduce(rec):
    F = ("f32", "bf16", "f16")

    def go(op, shape, dtype, dims, keep=False, out=None, strides=None, offset=0):
        if strides is None:
            x = E(shape, dtype)
            if offset:
                x = strided(shape, x.stride(), offset, dtype)
        else:
            x = strided(shape, strides, offset, dtype)
        o = DT[out] if out else None
        d = list(dims) if dims is not None else None
        f = dict(
            sum=lambda: A.sum.dim_IntList(x, d, keep, dtype=o),
            mean=lambda: A.mean.dim(x, d, keep, dtype=o),
            norm=lambda: A.linalg_vector_norm(x, 2, d, keep, dtype=o),
            amax=lambda: A.amax(x, d, keep),
            max=lambda: A.max(x),
            max_dim=lambda: A.max.dim(x, d[0], keep),
            argmax=lambda: A.argmax(x, d[0] if d else None, keep),
            all=lambda: A.all.dims(x, d, keep) if d else A.all(x),
            any=lambda: A.any.dims(x, d, keep) if d else A.any(x),
            var=lambda: A.var.correction(x, d, correction=1, keepdim=keep),
        )[op]
        rd = "i64" if op in ("argmax",) else "bool" if op in ("all", "any") else "i64" if op == "sum" and not out and dtype in ("bool", "i32", "u8") else out or dtype
        a = dict(shape=list(shape), dtype=dtype, dims=d if d is not None else list(range(len(shape))), keep=keep, out=rd)
        if strides is not None or offset:
            a.update(strides=list(x.stride()), offset=offset)
        rec.case(op, a, f)

    for dt in F:
        for n in (1, 31, 128, 300, 1024, 2048, 4096, 6000, 8192, 16384, 65536):
            for c in (1, 3, 6, 10, 64, 100, 130, 384, 768, 1000, 1024, 2304, 3072, 4096, 11008):
                go("sum", (n, c), dt, [0], True)
        for c in (32000, 50257, 151936):
            go("sum", (2048, c), dt, [0], True)
            go("amax", (2048, c), dt, [1], True)
        for s in ((2, 512, 768), (8, 512, 1000), (4, 2048, 4096), (1, 1024, 384), (16, 77, 514), (3, 5, 7)):
            for d in ([0, 1], [0, 1, 2], [2], [1], [0], [0, 2], [1, 2]):
                go("sum", s, dt, d)
                go("mean", s, dt, d, True)
            for d in ([0, 1, 2], [2], [1]):
                go("norm", s, dt, d)
                go("amax", s, dt, d)
                go("var", s, dt, d)
            go("sum", s, dt, [0, 1], out="f32")
            go("norm", s, dt, [0, 1, 2], out="f32")
            go("max", s, dt, None)
            go("argmax", s, dt, None)
            for d in (0, 1, 2):
                go("argmax", s, dt, [d])
                go("max_dim", s, dt, [d])
        # bias and weight gradients of convolutions and of broadcast sums
        for s in ((8, 64, 56, 56), (2, 96, 14, 14), (32, 16, 112, 112), (1, 3, 224, 224), (5, 7, 9, 11)):
            for d in ([0, 2, 3], [0], [2, 3], [0, 1, 2, 3], [1], [0, 1]):
                go("sum", s, dt, d)
            b, c, h, w = s
            go("sum", s, dt, [0, 2, 3], strides=(c * h * w, 1, w * c, c))
            go("mean", s, dt, [2, 3], True)
            go("mean", s, dt, [2, 3], True, strides=(c * h * w, 1, w * c, c))
        # transposed, sliced and shifted inputs
        for n, c in ((4096, 384), (2048, 770), (513, 129)):
            go("sum", (n, c), dt, [0], strides=(1, n))
            go("sum", (n, c), dt, [1], strides=(1, n))
            go("sum", (n, c), dt, [0], strides=(3 * c, 1), offset=c)
            go("sum", (n, c), dt, [0], offset=1)
            go("sum", (n, c), dt, [0], offset=2)
            go("sum", (n, c), dt, [1], offset=3)
            go("sum", (n, c), dt, [0, 1], strides=(3 * c, 1))
        for b, h, s, e in ((2, 12, 512, 64), (4, 32, 1024, 128), (1, 8, 100, 80)):
            st = (s * h * e, e, h * e, 1)
            for d in ([0], [2], [3], [0, 1], [0, 2], [1], [0, 1, 2]):
                go("sum", (b, h, s, e), dt, d, True, strides=st)
        for n in (1, 2, 100, 511, 512, 4096, 5000, 65536, 1000000, 12345678, 400000000):
            for op in ("sum", "mean", "norm", "amax", "max", "argmax", "var"):
                go(op, (n,), dt, [0] if op != "max" else None)
    # beyond 32-bit indices
    for dt in F:
        for s, d in (((40000, 32000), [0]), ((40000, 32000), [1]), ((40000, 32000), [0, 1]), ((9, 4096, 32000), [0, 1]), ((3000000000,), [0]), ((70000, 50257), [0, 1])):
            for op in ("sum", "mean", "amax", "norm", "var"):
                go(op, s, dt, d)
            go("argmax", s, dt, None)
            go("max", s, dt, None)
            if len(d) == 1:
                go("max_dim", s, dt, d)
        go("sum", (40000, 32000), dt, [0, 1], out="f32")
    for dt in ("i64", "i32", "bool", "u8", "f64"):
        for s in ((8, 512), (4096,), (16, 8192), (1, 1, 1024, 1024), (4096, 64), (1,), (3, 1)):
            full = list(range(len(s)))
            for d in (full, [len(s) - 1], [0]):
                go("sum", s, dt, d)
                if dt != "f64":
                    go("all", s, dt, d)
                    go("any", s, dt, d)
                if dt in ("i64", "f64"):
                    go("amax", s, dt, d)
            go("all", s, dt, None)
            if dt != "bool":
                go("max", s, dt, None)
                go("argmax", s, dt, [len(s) - 1])
                go("argmax", s, dt, None)
    for s in ((8, 512), (4096,), (16, 8192)):
        go("mean", s, "f32", [0], out="f64")
        go("sum", s, "f32", [0], out="f64")
        go("sum", s, "f32", [0], out="bf16")
        go("norm", s, "bf16", [0], out="f32")


def embedding(rec):
    for dt in ("f32", "bf16"):
        for n in (768, 3072, 3073, 3841, 4096, 4608, 8192, 10000, 16384, 65536, 300000):
            for v, d in ((50257, 768), (2, 768), (32000, 130), (151936, 64), (100, 64), (159, 8), (160, 8), (327, 8), (328, 8), (431, 8), (432, 8), (511, 8), (527, 8), (528, 8)):
                g, i = E((n, d), dt), E((n,), "i64")
                args = dict(n=n, v=v, d=d, dtype=dt)
                rec.case("embedding_dense_backward", args, lambda: A.embedding_dense_backward(g, i, v, -1, False))
            rec.case("embedding_dense_backward", dict(args, pad=0), lambda: A.embedding_dense_backward(g, i, v, 0, False))
            t = E((d, n), dt).t()
            rec.case("embedding_dense_backward", dict(args, strided=n > 1), lambda: A.embedding_dense_backward(t, i, v, -1, False))


def norm(rec):
    for dt in ("f32", "bf16", "f16"):
        for m, n in ((16, 64), (128, 384), (127, 770), (4096, 768), (16384, 4096), (65536, 64), (65537, 64), (65537, 640), (65600, 1263), (131072, 1728), (131072, 2016),
                     (200000, 128), (262144, 1312), (300000, 64), (300000, 33), (1000000, 16), (131072, 608), (131072, 640), (100000, 2112), (131072, 2048), (131072, 1280)):
            x, w, b = E((m, n), dt), E((n,), dt), E((n,), dt)
            a = dict(m=m, n=n, dtype=dt)
            f = lambda: A.native_layer_norm(x, [n], w, b, 1e-5)
            rec.case("layer_norm", a, f)
            o, mean, rstd = f()
            for mask in ([True, True, True], [True, True, False], [True, False, False], [False, True, True]):
                rec.case("layer_norm_backward", dict(a, mask=mask), lambda: A.native_layer_norm_backward(o, x, [n], mean, rstd, w, b, mask))
            f = lambda: A._fused_rms_norm(x, [n], w, 1e-5)
            rec.case("rms_norm", a, f)
            o, rstd = f()
            for mask in ([True, True], [True, False]):
                rec.case("rms_norm_backward", dict(a, mask=mask), lambda: A._fused_rms_norm_backward(o, x, [n], rstd, w, mask))
        for b, c, s, g in ((8, 64, 1024, 32), (2, 320, 4096, 32), (1, 512, 49, 32), (4, 32, 25, 4), (16, 64, 1, 8), (256, 32, 9, 32)):
            x, w, bias = E((b, c, s), dt), E((c,), dt), E((c,), dt)
            a = dict(b=b, c=c, s=s, g=g, dtype=dt)
            f = lambda: A.native_group_norm(x, w, bias, b, c, s, g, 1e-5)
            rec.case("group_norm", a, f)
            o, mean, rstd = f()
            for mask in ([True, True, True], [False, True, True]):
                rec.case("group_norm_backward", dict(a, mask=mask), lambda: A.native_group_norm_backward(o, x, mean, rstd, w, b, c, s, g, mask))
        for shape in ((8, 64, 56, 56), (2, 512, 7, 7), (64, 128), (16, 64, 100), (256, 2048), (131073, 64, 1, 1), (5000, 100), (880802, 8, 1), (65536, 3, 2), (300, 1000, 1, 1), (4096, 30)):
            for last in (False, True) if len(shape) == 4 else (False,):
                for wd in {"f32", dt}:
                    c = shape[1]
                    x = E(shape, dt)
                    if last:
                        x = x.to(memory_format=torch.channels_last)
                    w, b, rm, rv = (E((c,), wd) for _ in range(4))
                    a = dict(shape=list(shape), dtype=dt, weight=wd, last=last)
                    for train in (True, False):
                        f = lambda: A._batch_norm_impl_index(x, w, b, rm, rv, train, 0.1, 1e-5, True)
                        rec.case("batch_norm", dict(a, train=train), f)
                        n = lambda: A.native_batch_norm(x, w, b, rm, rv, train, 0.1, 1e-5)
                        rec.case("native_batch_norm", dict(a, train=train), n)
                        if train:
                            o, n = f(), n()
                            rec.case("batch_norm_backward", a, lambda: A._batch_norm_impl_index_backward(o[4], x, o[0], w, rm, rv, o[1], o[2], True, 1e-5, [True] * 3, o[3]))
                            rec.case("native_batch_norm_backward", a, lambda: A.native_batch_norm_backward(n[0], x, w, rm, rv, n[1], n[2], True, 1e-5, [True] * 3))


def loss(rec):
    for dt in ("f32", "bf16", "f16"):
        for n, v in ((4096, 32000), (64, 1000), (8192, 50257), (128, 10)):
            x, t = E((n, v), dt), E((n,), "i64")
            rec.case("only_results", dict(op="softmax", n=n, v=v, dtype=dt, results=1), lambda: A._softmax(x, -1, False))
            o = A._log_softmax(x, -1, False)
            rec.case("only_results", dict(op="log_softmax", n=n, v=v, dtype=dt, results=1), lambda: A._log_softmax(x, -1, False))
            rec.case("only_results", dict(op="log_softmax_backward", n=n, v=v, dtype=dt, results=1), lambda: A._log_softmax_backward_data(o, o, -1, x.dtype))
            rec.case("softmax_backward", dict(n=n * v, dtype=dt), lambda: A._softmax_backward_data(o, o, -1, x.dtype))
            for r in (0, 1, 2):
                f = lambda: A.nll_loss_forward(o, t, None, r, -100)
                rec.case("only_results", dict(op="nll", n=n, v=v, dtype=dt, reduction=r, results=2), f)
                l, tw = f()
                rec.case("only_results", dict(op="nll_backward", n=n, v=v, dtype=dt, reduction=r, results=1), lambda: A.nll_loss_backward(l, o, t, None, r, -100, tw))
        for n in (64, 6400, 262144, 10000000):
            for r in (0, 1, 2):
                y, z, g = E((n,), dt), E((n,), dt), E((n,) if r == 0 else (), dt)
                a = dict(n=n, dtype=dt, reduction=r)
                rec.case("mse", a, lambda: A.mse_loss(y, z, r))
                rec.case("only_results", dict(a, op="mse_backward", results=1), lambda: A.mse_loss_backward(g, y, z, r))
                rec.case("smooth_l1", a, lambda: A.smooth_l1_loss(y, z, r))
                rec.case("bce", a, lambda: A.binary_cross_entropy_with_logits(y, z, None, None, r))


def sdpa(rec):
    shapes = [(2, 12, 12, 512, 512, 64), (2, 12, 12, 150, 150, 64), (2, 12, 12, 77, 77, 80), (2, 32, 8, 512, 512, 128), (2, 8, 8, 512, 300, 96), (1, 4, 4, 333, 333, 256), (2, 12, 12, 1, 513, 64),
              (2, 32, 8, 1, 513, 128), (1, 8, 8, 100, 100, 32), (1, 1, 1, 2048, 2048, 64), (1, 6, 6, 1024, 1024, 64), (8, 16, 16, 1024, 1024, 88), (1, 32, 32, 4096, 4096, 128), (1, 12, 1, 40, 72, 40),
              (16, 12, 12, 128, 128, 64), (1, 8, 8, 1, 1024, 64), (1, 16, 16, 64, 4096, 112), (1, 3, 3, 200, 200, 160), (1, 4, 4, 129, 257, 192), (4, 8, 8, 512, 512, 256), (60, 4, 4, 130, 130, 256), (1, 2, 2, 31, 33, 8)]
    for dt in ("f32", "bf16", "f16"):
        for shape in shapes:
            B, H, K, Sq, Sk, d = shape
            for bshd in (False, True):
                mk = lambda h, s: E((B, s, h, d), dt).transpose(1, 2) if bshd else E((B, h, s, d), dt)
                q, k, v, g = mk(H, Sq), mk(K, Sk), mk(K, Sk), mk(H, Sq)
                for causal, p in ((False, 0.0), (True, 0.0), (False, 0.1)):
                    a = dict(shape=list(shape), dtype=dt, dropout=p > 0)
                    if causal:
                        a["causal"] = True
                    # a copy is made where the data does not lie as [B, S, H, D]
                    copy = not bshd and Sq > 1 and H > 1
                    b = dict(a, gcopy=copy, ocopy=copy)
                    if dt != "f32" and torch.cuda.get_device_capability()[0] >= 8:
                        f = lambda: A._scaled_dot_product_flash_attention(q, k, v, p, causal, False)
                        o = f()
                        rec.case("flash", dict(a, bshd=bshd), lambda: (lambda o: (o[0], o[1], o[6], o[7]))(f()))
                        rec.case("flash_backward", b, lambda: A._scaled_dot_product_flash_attention_backward(g, q, k, v, *o[:6], p, causal, o[6], o[7]))
                    if dt != "f32" and torch.cuda.get_device_capability()[0] == 9 and d <= 128 and not causal:
                        m = E((B, 1, Sq, Sk), dt)
                        f = lambda: A._scaled_dot_product_cudnn_attention(q, k, v, m, True, p, causal, False)
                        o = f()
                        rec.case("cudnn_sdpa", dict(a, bshd=bshd), lambda: (lambda o: (o[0], o[1], o[6], o[7]))(f()))
                        rec.case("cudnn_sdpa_backward", dict(a, bshd=bshd), lambda: A._scaled_dot_product_cudnn_attention_backward(g, q, k, v, o[0], o[1], o[6], o[7], m, *o[2:6], p, causal))
                    if K == H and (dt != "bf16" or torch.cuda.get_device_capability()[0] >= 8):
                        for m in (False, True) if not causal else (False,):
                            bias = E((1, 1, Sq, (Sk + 7) // 8 * 8), dt)[..., :Sk].expand(B, H, Sq, Sk) if m else None
                            f = lambda: A._scaled_dot_product_efficient_attention(q, k, v, bias, True, p, causal)
                            rec.case("efficient", dict(a, mask=m, bshd=bshd), f)
                            o = f()
                            rec.case("efficient_backward", dict(b, mask=m, ocopy=False), lambda: A._scaled_dot_product_efficient_attention_backward(g, q, k, v, bias, *o, p, [True, True, True, False], causal))
    for B, H, S, d in ((2, 4, 150, 64), (1, 4, 64, 32), (2, 8, 999, 64)):
        for per_batch in (1, B):
            q, m = E((B, H, S, d)), E((per_batch, 1, S, S), "bool")
            with torch.no_grad():
                rec.case("boolean_mask", dict(shape=[B, H, H, S, S, d], dtype="f32", rows=per_batch * S), lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q, attn_mask=m))
    for dt in ("f32", "bf16"):
        for rows, width in ((1000, 150), (64, 4096), (3, 20000), (1, 100000)):
            x = E((rows, width), dt)
            rec.case("safe_softmax", dict(rows=rows, width=width, dtype=dt), lambda: A._safe_softmax(x, -1))


def gemm(rec):
    def fresh(*case):
        torch._C._cuda_clearCublasWorkspaces()  # so that the case makes its workspaces
        rec.case(*case)

    for dt in ("f32", "bf16", "f16", "f64"):
        for m, n, k in ((64, 16, 32), (1, 16, 32), (64, 1, 32), (64, 16, 1), (64, 2, 2), (2, 16, 32), (64, 17, 33), (1, 1, 32), (4096, 2304, 768)):
            x, w, b, full, wide = E((m, k), dt), E((n, k), dt), E((n,), dt), E((m, n), dt), E((2 * n,), dt)
            a = dict(m=m, n=n, k=k, dtype=dt, row=True, beta1=True)
            fresh("linear", a, lambda: torch.nn.functional.linear(x, w, b))
            fresh("addmm", dict(a, bias="[n]"), lambda: torch.addmm(b, x, w.t()))
            fresh("addmm", dict(a, bias="[1,n]"), lambda: torch.addmm(b[None], x, w.t()))
            fresh("addmm", dict(a, bias="[m,n]", row=m == 1), lambda: torch.addmm(full, x, w.t()))
            fresh("addmm", dict(a, bias="strided", row=n == 1), lambda: torch.addmm(wide[::2], x, w.t()))
            fresh("addmm", dict(a, bias="scalar", row=n == 1), lambda: torch.addmm(b[0], x, w.t()))
            fresh("addmm", dict(a, beta1=False), lambda: torch.addmm(b, x, w.t(), beta=0.5))
            fresh("addmm", dict(a, alpha=2), lambda: torch.addmm(b, x, w.t(), alpha=2))
            fresh("mm", a, lambda: torch.mm(x, w.t()))
    torch.mm(E((8, 8)), E((8, 8)))
    for dt in ("bf16", "f32"):
        for s, k, n, g in ((64, 32, 48, 4), (4096, 1024, 2048, 8), (512, 256, 256, 33), (100, 64, 64, 128)):
            x, w, wt, offs, go = E((s, k), dt), E((g, k, n), dt), E((g, n, k), dt).transpose(-2, -1), E((g,), "i32"), E((s, n), dt)
            a = dict(groups=g, s=s, k=k, n=n, dtype=dt)
            rec.case("grouped_mm", a, lambda: torch._grouped_mm(x, w, offs))
            rec.case("grouped_mm", dict(a, transposed=True), lambda: torch._grouped_mm(x, wt, offs))
            rec.case("grouped_mm", dict(a, of="weight"), lambda: torch._grouped_mm(x.t(), go, offs))


def index(rec):
    F = torch.nn.functional
    for dt in ("f32", "i64", "i32", "bf16"):
        for rows, width in ((64, 8), (4096, 64), (100, 4000), (1, 16), (1, 2048), (1, 4096), (1, 4097), (1, 8192), (1, 65536), (1, 300000), (1, 10000000)):
            if rows == 1 and width > 4096 and dt == "bf16":
                continue
            x = E((rows, width) if rows > 1 else (width,), dt)
            for stable in (False, True):
                rec.case("sort", dict(rows=rows, width=width, dtype=dt, stable=stable), lambda: A.sort.stable(x, stable=stable, dim=-1, descending=False))
    for n in (8, 128, 1000, 4096, 65536, 300000, 10000000):
        for dt, out in (("i64", "i64"), ("i32", "i64"), ("bool", "i64"), ("i32", "i32"), ("i64", "i32"), ("f32", "f32"), ("bool", "i32")):
            x, m = E((n,), dt), E((4, n), dt)
            rec.case("cumsum", dict(n=n, dtype=dt, out=out, whole=True), lambda: A.cumsum(x, 0, dtype=DT[out]))
            rec.case("cumsum", dict(n=4 * n, dtype=dt, out=out, whole=False), lambda: A.cumsum(m, 1, dtype=DT[out]))
        for dt in ("bool", "i64", "f32"):
            x = E((n,), dt)
            rec.case("nonzero", dict(n=n, dtype=dt), lambda: A.nonzero(x))
    for n in (2, 10, 1000, 2304, 2305, 3000, 4096, 10000, 100000, 1000000):
        for rows, cols in ((50000, 16), (200, 64), (4096, 8), (70000, 4)):
            x, i, y = E((rows, cols)), E((n,), "i64"), E((n, cols))
            j, z = E((n,), "i64"), E((n,))
            for checked in (False, True):
                a = dict(n=n, rows=rows, cols=cols, checked=checked)
                rec.case("index_put", dict(a, k=1, slots=rows), lambda: (A._index_put_impl_(x, [i], y, True, not checked), None)[1])
                rec.case("index_put", dict(a, k=2, slots=rows * cols), lambda: (A._index_put_impl_(x, [i, j], z, True, not checked), None)[1])
    for dt in ("f32", "bf16"):
        x, p, g, m = E((4096, 64), dt), E((4096, 4), "i64"), E((4096, 4), dt), E((4096, 64), "bool")
        rows, y, hist = E((1000,), "i64"), E((1000, 64), dt), E((8192,), "i32")
        calls = dict(
            topk=lambda: A.topk(x, 4), topk_unsorted=lambda: A.topk(x, 8, -1, True, False), gather=lambda: A.gather(x, 1, p), scatter_add=lambda: A.scatter_add(x, 1, p, g), index=lambda: A.index(x, [rows]),
            index_add=lambda: A.index_add(x, 0, rows, y), index_select=lambda: A.index_select(x, 0, rows), masked_fill=lambda: A.masked_fill(x, m, 0.0), where=lambda: A.where(m, x, x),
            scatter_inplace=lambda: (A.scatter_(x, 1, p, g), None)[1], index_add_inplace=lambda: (x.index_add_(0, rows, y), None)[1], masked_fill_inplace=lambda: (x.masked_fill_(m, 0.0), None)[1],
            index_put=lambda: (A.index_put_(x, [rows], y, False), None)[1], one_hot=lambda: F.one_hot(p, 64), histc=lambda: torch.histc(hist, 64, 0, 63),
            tril=lambda: x.tril(), triu=lambda: x.triu(1), repeat_interleave=lambda: x.repeat_interleave(2, 0), cat=lambda: torch.cat([x, x]), stack=lambda: torch.stack([x, x]))
        for name, call in calls.items():
            rec.case("only_results", dict(op=name, dtype=dt, results=0 if "inplace" in name or name == "index_put" else 2 if "topk" in name else 1), call)
        rec.case("dropout", dict(dtype=dt), lambda: A.native_dropout(x, 0.1, True))


def conv(rec):
    last = torch.channels_last
    for dt in ("f32", "bf16", "f16"):
        if dt == "bf16" and torch.cuda.get_device_capability()[0] < 8:
            continue  # not cuDNN there
        size = DT[dt].itemsize
        for B, C, H, O, k, st, pad, g in ((2, 3, 64, 16, 7, 2, 3, 1), (4, 16, 28, 32, 3, 1, 1, 1), (4, 16, 28, 16, 3, 1, 1, 16), (4, 16, 28, 32, 1, 1, 0, 1), (2, 8, 28, 16, 3, 2, 1, 2), (8, 3, 224, 64, 7, 2, 3, 1),
                                          (8, 96, 56, 96, 7, 1, 3, 96), (8, 64, 56, 64, 3, 1, 1, 64), (8, 64, 56, 64, 3, 2, 1, 64), (8, 64, 6, 64, 3, 1, 1, 64), (32, 64, 28, 64, 5, 1, 2, 64), (64, 3, 224, 768, 16, 16, 0, 1),
                                          (1, 32, 14, 32, 1, 1, 0, 32), (8, 256, 28, 256, 3, 2, 1, 256), (8, 256, 14, 256, 5, 2, 2, 256), (1, 64, 56, 64, 3, 2, 1, 64), (1, 64, 56, 64, 1, 2, 0, 64), (8, 128, 7, 128, 1, 2, 0, 128), (128, 256, 14, 512, 3, 1, 1, 1)):
            for cl in (False, True):
                x, w, b = E((B, C, H, H), dt), E((O, C // g, k, k), dt), E((O,), dt)
                if cl:
                    x, w = x.to(memory_format=last), w.to(memory_format=last)
                f = lambda x: A.convolution(x, w, b, [st, st], [pad, pad], [1, 1], False, [0, 0], g)
                other = x.contiguous() if cl else x.to(memory_format=last)
                both = k == 1 or C // g == 1  # such a weight is in both formats
                rec.case("conv", dict(x=list(x.shape), o=O, kernel=k, groups=g, dtype=dt, last=cl, xcopy=0, wcopy=0), lambda: f(x))
                rec.case("conv", dict(x=list(x.shape), o=O, kernel=k, groups=g, dtype=dt, last=cl, other=True, xcopy=x.numel() * size if cl and (k > 1 or C > g) else 0, wcopy=0 if cl or both else w.numel() * size), lambda: f(other))
                o = f(x)
                for grad in (torch.empty_like(o), o.contiguous() if cl else o.to(memory_format=last)):
                    for mask in ([True, True, True], [False, True, False]):
                        a = dict(x=list(x.shape), kernel=k, stride=st, groups=g, dtype=dt, last=cl, mask=mask, gcopy=grad.stride() != o.stride(), shape=list(o.shape), strides=list(grad.stride()), offset=0)
                        rec.case("conv_backward", a, lambda: A.convolution_backward(grad, x, w, [O], [st, st], [pad, pad], [1, 1], False, [0, 0], g, mask))
        for cl in (False, True):
            x = E((2, 64, 56, 56), dt)
            if cl:
                x = x.to(memory_format=last)
            o, i = A.max_pool2d_with_indices(x, [3, 3], [2, 2], [1, 1])
            p = A.avg_pool2d(x, [2, 2], [2, 2])
            for name, n, call in (("max_pool2d", 2, lambda: A.max_pool2d_with_indices(x, [3, 3], [2, 2], [1, 1])), ("max_pool2d_backward", 1, lambda: A.max_pool2d_with_indices_backward(o, x, [3, 3], [2, 2], [1, 1], [1, 1], False, i)),
                                  ("avg_pool2d", 1, lambda: A.avg_pool2d(x, [2, 2], [2, 2])), ("avg_pool2d_backward", 1, lambda: A.avg_pool2d_backward(p, x, [2, 2], [2, 2], [0, 0], False, True, None)),
                                  ("adaptive_avg_pool2d", 1, lambda: A._adaptive_avg_pool2d(x, [7, 7]))):
                rec.case("only_results", dict(op=name, dtype=dt, last=cl, results=n), call)
            rec.case("mean", dict(shape=list(x.shape), strides=list(x.stride()), offset=0, dtype=dt, dims=[2, 3], keep=True, out=dt), lambda: torch.nn.functional.adaptive_avg_pool2d(x, 1))


def foreach(rec):
    for dt in ("f32", "bf16", "f16", "f64"):
        for n in ([1000, 2000, 7, 90000], [9000000], [9000000, 70000000], [65536, 65537], [5] * 200):
            xs = [E((k,), dt) for k in n]
            rec.case("foreach_norm", dict(n=n, dtype=dt), lambda: torch._foreach_norm(xs, 2.0))
            rec.case("only_results", dict(op="foreach_sqrt", n=n, dtype=dt, results=len(n)), lambda: torch._foreach_sqrt(xs))
            rec.case("only_results", dict(op="foreach_inplace", n=n, dtype=dt, results=0), lambda: (torch._foreach_mul_(xs, 0.5), torch._foreach_addcdiv_(xs, xs, xs, 0.1), torch._foreach_lerp_(xs, xs, 0.1), None)[3])


GROUPS = dict(reduce=reduce, embedding=embedding, norm=norm, loss=loss, sdpa=sdpa, gemm=gemm, index=index, conv=conv, foreach=foreach)
