#!/usr/bin/env python3
"""Records what operators of PyTorch allocate forward and backward: the data of crates/tonnage-sim/tests/operators.rs.

    tools/record_operators.py > crates/tonnage-sim/tests/fixtures/operators.txt

It runs real PyTorch 2.11 on a GPU, or on a null CUDA device (see record_kernels.py). One line a case: its name, then the
allocator's history of `y = f(inputs); y.backward(g); del y, gradients`, as +BYTES (allocation, numbered from 0 in order)
and -NUMBER (its free). The inputs and `g` exist before.
"""
import torch

F = torch.nn.functional
A, T, B = (2, 3, 4, 5), (2, 4, 3, 5), (5,)


def new(shape, dtype=torch.float32, grad=True):
    return torch.empty(shape, device="cuda", dtype=dtype, requires_grad=grad and dtype.is_floating_point)


def one(f, dtype=torch.float32):
    """f of one [2, 3, 4, 5] input."""
    return lambda: ([new(A, dtype)], f)


def two(f, a=A, b=A, da=torch.float32, db=torch.float32, ga=True, gb=True):
    return lambda: ([new(a, da, ga), new(b, db, gb)], f)


def autocast(f):
    def g(*x):
        with torch.autocast("cuda", torch.bfloat16):
            return f(*x)
    return g


def mask(f, shape=A):
    return lambda: ([new(A), new(shape, torch.bool)], f)


def last_half(x):
    return x[..., :2]


CASES = {
    "neg": one(lambda x: -x),
    "add_scalar": one(lambda x: x + 1.0),
    "rsub_scalar": one(lambda x: 1.0 - x),
    "mul_scalar": one(lambda x: x * 2.0),
    "div_scalar": one(lambda x: x / 2.0),
    "pow": one(lambda x: x.pow(3)),
    "pow_autocast": one(autocast(lambda x: x.pow(2)), torch.bfloat16),
    "rsqrt": one(torch.rsqrt),
    "rsqrt_autocast": one(autocast(torch.rsqrt), torch.bfloat16),
    "sqrt": one(torch.sqrt),
    "reciprocal": one(torch.reciprocal),
    "exp": one(torch.exp),
    "log": one(torch.log),
    "cos": one(torch.cos),
    "sin": one(torch.sin),
    "abs": one(torch.abs),
    "silu": one(F.silu),
    "gelu": one(F.gelu),
    "tanh": one(torch.tanh),
    "sigmoid": one(torch.sigmoid),
    "relu": one(F.relu),
    "softplus": one(F.softplus),
    "clamp_min": one(lambda x: x.clamp(min=0.5)),
    "clamp_both": one(lambda x: x.clamp(0.5, 2.0)),
    "dropout": one(lambda x: F.dropout(x, 0.1, True)),
    "dropout_zero": one(lambda x: -F.dropout(x, 0.0, True)),
    "to_bf16": one(lambda x: x.to(torch.bfloat16)),
    "clone": one(lambda x: x.clone()),
    "add": two(lambda a, b: a + b),
    "add_broadcast": two(lambda a, b: a + b, b=B),
    "add_mixed": two(lambda a, b: a + b, da=torch.bfloat16),
    "add_mixed_broadcast": two(lambda a, b: a + b, b=B, db=torch.bfloat16),
    "sub": two(lambda a, b: a - b),
    "sub_broadcast": two(lambda a, b: a - b, b=B),
    "mul": two(lambda a, b: a * b),
    "mul_broadcast": two(lambda a, b: a * b, b=B),
    "mul_left": two(lambda a, b: a * b, gb=False),
    "mul_right": two(lambda a, b: a * b, ga=False),
    "mul_mixed": two(lambda a, b: a * b, da=torch.bfloat16),
    "mul_scalar_tensor": two(lambda a, b: a * b, b=(), da=torch.bfloat16, gb=False),
    "div": two(lambda a, b: a / b),
    "div_broadcast": two(lambda a, b: a / b, b=(2, 3, 4, 1)),
    "masked_fill": mask(lambda x, m: x.masked_fill(m, 0.0)),
    "masked_fill_broadcast": mask(lambda x, m: x.masked_fill(m, 0.0), (4, 5)),
    "where": lambda: ([new(A), new(A), new(A, torch.bool)], lambda a, b, c: torch.where(c, a, b)),
    "where_left": lambda: ([new(A), new(A, grad=False), new((4, 5), torch.bool)], lambda a, b, c: torch.where(c, a, b)),
    "mul_": two(lambda a, b: (a * 1.0).mul_(b), gb=False),
    "add_": two(lambda a, b: (a * 1.0).add_(b)),
    "relu_": one(lambda x: (x * 1.0).relu_()),
    "masked_fill_": mask(lambda x, m: (x * 1.0).masked_fill_(m, 0.0)),
    "reshape_view": one(lambda x: -x.reshape(6, 20)),
    "reshape_copy": one(lambda x: -x.transpose(1, 2).reshape(2, 4, 15)),
    "view_of_transposed_gradient": one(lambda x: x.view(2, 12, 5).transpose(1, 2).contiguous()),
    "heads": one(lambda x: x.view(2, 3, 2, 2, 5).transpose(1, 2) * 1.0),
    "contiguous": one(lambda x: x.transpose(1, 2).contiguous()),
    "permute": one(lambda x: x.permute(3, 1, 0, 2) * 2.0),
    "slice": one(lambda x: -last_half(x)),
    "slice_all": one(lambda x: -x[:, :, :]),
    "select": one(lambda x: -x[:, 1]),
    "unsqueeze": one(lambda x: -x.unsqueeze(1)),
    "squeeze": lambda: ([new((2, 1, 5))], lambda x: -x.squeeze(1)),
    "expand": lambda: ([new((2, 1, 5))], lambda x: -x.expand(2, 3, 5)),
    "split": one(lambda x: (lambda p: p[0] * p[1])(x.split(2, -2))),
    "split_missing": one(lambda x: -x.split(2, -2)[1]),
    "chunk": one(lambda x: (lambda p: p[0] * p[2])(x.chunk(3, 1))),
    "unbind": one(lambda x: (lambda p: p[0] * p[2])(x.unbind(1))),
    "cat": two(lambda a, b: torch.cat((a, b), 1)),
    "cat_left": two(lambda a, b: torch.cat((-a, b), 1), gb=False),
    "rotate_half": one(lambda x: (lambda a, b: torch.cat((-b, a), -1))(x[..., :2], x[..., 2:4])),
    "stack": two(lambda a, b: torch.stack((a, b), 1)),
    "stack_product": two(lambda a, b: torch.stack((-a, -b), -1)),
    "repeat_kv": one(lambda x: x[:, :, None, :, :].expand(2, 3, 2, 4, 5).reshape(2, 6, 4, 5)),
    "flatten": one(lambda x: -x.transpose(1, 2).flatten(2)),
}


def history():
    """The allocator's events so far, of every thread."""
    return torch.cuda.memory._snapshot()["device_traces"][0]


def main():
    torch.cuda.init()
    torch.cuda.memory._record_memory_history(enabled="all", context=None, max_entries=1_000_000)
    rows = []
    for name, make in CASES.items():
        inputs, f = make()
        seed = torch.empty_like(f(*inputs))
        wanted = [x for x in inputs if x.requires_grad]
        before = len(history())
        y = f(*inputs)
        y.backward(seed)
        del y
        for x in wanted:
            x.grad = None
        words, live, n = [], {}, 0
        for e in history()[before:]:
            if e["action"] == "alloc":
                live[e["addr"]] = n
                n += 1
                words.append(f"+{e['size']}")
            elif e["action"] == "free_completed" and e["addr"] in live:
                words.append(f"-{live.pop(e['addr'])}")
        rows.append(f"{name} {' '.join(words)}")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
