"""Plain torch modules of layouts that no library ships, for making recorded runs of them.

GptPerHead: one module per attention head, explicit scores, an fp32 T x T mask buffer in every head, ReLU, untied head with a bias.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F


class Head(nn.Module):
    def __init__(self, width, size, block, p):
        super().__init__()
        self.key = nn.Linear(width, size, bias=False)
        self.query = nn.Linear(width, size, bias=False)
        self.value = nn.Linear(width, size, bias=False)
        self.register_buffer("tril", torch.tril(torch.ones(block, block)))
        self.dropout = nn.Dropout(p)

    def forward(self, x):
        t = x.shape[1]
        k = self.key(x)
        q = self.query(x)
        w = q @ k.transpose(-2, -1) * k.shape[-1] ** -0.5
        w = w.masked_fill(self.tril[:t, :t] == 0, float("-inf"))
        w = F.softmax(w, dim=-1)
        w = self.dropout(w)
        v = self.value(x)
        return w @ v


class Heads(nn.Module):
    def __init__(self, width, heads, block, p):
        super().__init__()
        self.heads = nn.ModuleList(Head(width, width // heads, block, p) for _ in range(heads))
        self.proj = nn.Linear(width, width)
        self.dropout = nn.Dropout(p)

    def forward(self, x):
        out = torch.cat([h(x) for h in self.heads], dim=-1)
        return self.dropout(self.proj(out))


class Feed(nn.Module):
    def __init__(self, width, p):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width), nn.Dropout(p))

    def forward(self, x):
        return self.net(x)


class Block(nn.Module):
    def __init__(self, width, heads, block, p):
        super().__init__()
        self.sa = Heads(width, heads, block, p)
        self.ffwd = Feed(width, p)
        self.ln1 = nn.LayerNorm(width)
        self.ln2 = nn.LayerNorm(width)

    def forward(self, x):
        x = x + self.sa(self.ln1(x))
        return x + self.ffwd(self.ln2(x))


class GptPerHead(nn.Module):
    def __init__(self, vocab_size=50304, block_size=256, n_layer=6, n_head=6, n_embd=384, dropout=0.2, **_):
        super().__init__()
        self.token_embedding_table = nn.Embedding(vocab_size, n_embd)
        self.position_embedding_table = nn.Embedding(block_size, n_embd)
        self.blocks = nn.Sequential(*[Block(n_embd, n_head, block_size, dropout) for _ in range(n_layer)])
        self.ln_f = nn.LayerNorm(n_embd)
        self.lm_head = nn.Linear(n_embd, vocab_size)

    def forward(self, idx, targets=None):
        tok = self.token_embedding_table(idx)
        pos = self.position_embedding_table(torch.arange(idx.shape[1], device=idx.device))
        x = tok + pos
        x = self.blocks(x)
        x = self.ln_f(x)
        logits = self.lm_head(x)
        if targets is None:
            return logits, None
        b, t, c = logits.shape
        return logits, F.cross_entropy(logits.view(b * t, c), targets.view(b * t))
