"""Forty equal steps of a small model, and what may come in between."""
import sys

import torch
from torch import nn

WHAT, DEVICE = sys.argv[1], "cuda"
model = nn.Sequential(nn.Embedding(50, 32), *[nn.Sequential(nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 32)) for _ in range(2)], nn.Linear(32, 50)).to(DEVICE)
optimizer = torch.optim.AdamW(model.parameters())


def step(length):
    ids = torch.randint(0, 50, (8, length), device=DEVICE)
    loss = nn.functional.cross_entropy(model(ids).view(-1, 50), ids.view(-1))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


kept = []
for i in range(40):
    loss = step(64)
    if WHAT == "evaluation" and i in (20, 30):
        model.eval()
        with torch.no_grad():
            model(torch.randint(0, 50, (512, 64), device=DEVICE)).softmax(-1)
        model.train()
    if WHAT == "longer" and i == 25:
        step(512)
    if WHAT == "logging" and i % 10 == 9:
        torch.stack([loss, loss]).mean().item()
    if WHAT == "aside" and i == 25:
        torch.empty(16 << 20, device=DEVICE)
    if WHAT == "full" and i == 25:
        torch.empty(1 << 40, device=DEVICE)
    if WHAT == "leak":
        kept.append(loss)
    if WHAT == "two" and i == 0:
        second = torch.optim.SGD([nn.Parameter(torch.zeros(1 << 20, device=DEVICE))], lr=0.1)
    if WHAT == "two":
        p = second.param_groups[0]["params"][0]
        p.grad = torch.ones_like(p)
        second.step()
        second.zero_grad()
