"""Kernels of other packages (xformers, liger, sage, fla: the arguments): the bytes they add, against what their sources allocate."""
import importlib.util
import sys

import torch

BATCH, LENGTH, HEADS, WIDTH, WORDS = 2, 512, 8, 64, 8000
ROWS, FEATURES = BATCH * LENGTH, HEADS * WIDTH
HALF = dict(dtype=torch.bfloat16, device="cuda")


def added(call):
    """What a call returns, the bytes it leaves, and the most it had."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call()
    return result, torch.cuda.memory_allocated() - before, torch.cuda.max_memory_allocated() - before


def heads(n):
    return [torch.randn(BATCH, LENGTH, HEADS, WIDTH, requires_grad=True, **HALF) for _ in range(n)]


def xformers():
    from xformers import _cpp_lib
    from xformers.ops import LowerTriangularMask, fmha, memory_efficient_attention

    if _cpp_lib._cpp_library_load_exception is not None:
        sys.exit("xformers is not installed for this CUDA runtime")
    q, k, v = heads(3)
    op = (fmha.cutlass.FwOp, fmha.cutlass.BwOp)
    y, kept, _ = added(lambda: memory_efficient_attention(q, k, v, attn_bias=LowerTriangularMask(), op=op))
    output, logsumexp = ROWS * FEATURES * 2, BATCH * HEADS * LENGTH * 4
    assert kept == output + logsumexp, kept
    _, kept, _ = added(lambda: y.backward(torch.empty_like(y)))
    # the gradients stay, the logsumexp goes (the output is still held here)
    assert kept == 3 * output - logsumexp, kept


def liger():
    from liger_kernel.transformers import LigerCrossEntropyLoss, LigerFusedLinearCrossEntropyLoss, LigerRMSNorm

    x = torch.randn(ROWS, FEATURES, requires_grad=True, **HALF)
    norm = LigerRMSNorm(FEATURES).to(**HALF)
    y, kept, _ = added(lambda: norm(x))
    assert kept == ROWS * FEATURES * 2 + ROWS * 4, kept  # the output and one reciprocal a row
    ids = torch.randint(0, WORDS, (ROWS,), device="cuda")
    logits = torch.randn(ROWS, WORDS, requires_grad=True, **HALF)
    loss, kept, _ = added(lambda: LigerCrossEntropyLoss()(logits, ids))
    assert kept < ROWS * WORDS * 2 // 100, kept  # the gradient lies where the logits were
    weight = torch.randn(WORDS, FEATURES, requires_grad=True, **HALF)
    loss, kept, most = added(lambda: LigerFusedLinearCrossEntropyLoss()(weight, x, ids))
    gradients = (ROWS + WORDS) * FEATURES * 2
    assert gradients < kept <= gradients + 1024, kept  # both gradients and the loss
    assert most < gradients + ROWS * WORDS * 2 // 8, most  # the logits exist in parts only
    loss.backward()


def sage():
    from sageattention import sageattn

    q, k, v = (t.detach().half() for t in heads(3))
    y, kept, most = added(lambda: sageattn(q, k, v, tensor_layout="NHD", is_causal=True))
    assert kept == ROWS * FEATURES * 2, kept
    assert 2 * kept < most < 2 * kept + 8192, most  # and two operands in 8 bits, with a scale for each block of rows


def fla():
    from fla.layers import GatedLinearAttention

    layer = GatedLinearAttention(hidden_size=256, num_heads=4).to(**HALF)
    x = torch.randn(2, 256, 256, requires_grad=True, **HALF)
    y, kept, _ = added(lambda: layer(x)[0])
    y.float().pow(2).mean().backward()


torch.mm(*[torch.empty(64, 64, **HALF)] * 2)  # cuBLAS's workspace, where it stays
MODULES = dict(xformers="xformers", liger="liger_kernel", sage="sageattention", fla="fla")
for name in sys.argv[1:]:
    if importlib.util.find_spec(MODULES[name]) is None:
        sys.exit(f"{name} is not installed")
    else:
        globals()[name]()
        print(name, "ran")
