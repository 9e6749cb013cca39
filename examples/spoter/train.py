"""The sign-language transformer (SPOTER): pose sequences of 108 numbers a frame to one of 60 signs, in plain PyTorch.

    python examples/spoter/train.py --batch 8

Random data stands in for the recordings: what the run needs in memory does not depend on it. Without a GPU:

    tonnage dry-run --gpu rtx-3060-12gb -- python examples/spoter/train.py --batch 8
"""
import argparse

import torch
from torch import nn

FRAMES, FEATURES, HEADS, LAYERS, CLASSES, DROPOUT = 150, 108, 9, 8, 60, 0.15


class Spoter(nn.Module):
    def __init__(self):
        super().__init__()
        self.input = nn.Sequential(nn.Linear(FEATURES, FEATURES), nn.LayerNorm(FEATURES), nn.Dropout(DROPOUT / 2))
        self.class_token = nn.Parameter(torch.zeros(1, 1, FEATURES))
        self.positions = nn.Parameter(torch.zeros(1, FRAMES + 1, FEATURES))
        layer = nn.TransformerEncoderLayer(FEATURES, HEADS, 512, DROPOUT, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.head = nn.Sequential(
            nn.LayerNorm(FEATURES),
            nn.Linear(FEATURES, FEATURES), nn.GELU(), nn.Dropout(DROPOUT),
            nn.Linear(FEATURES, FEATURES // 2), nn.GELU(), nn.Dropout(DROPOUT),
            nn.Linear(FEATURES // 2, CLASSES),
        )

    def forward(self, frames, padding):
        x = self.input(frames)
        x = torch.cat([self.class_token.expand(x.size(0), -1, -1), x], dim=1) + self.positions
        seen = torch.zeros(x.size(0), 1, dtype=torch.bool, device=x.device)
        x = self.encoder(x, src_key_padding_mask=torch.cat([seen, padding], dim=1))
        return self.head(x[:, 0])


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--batch", type=int, default=8)
    a.add_argument("--accumulation", type=int, default=2)
    a.add_argument("--steps", type=int, default=3)
    a = a.parse_args()
    model = Spoter().cuda()
    print(sum(p.numel() for p in model.parameters()), "parameters")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.1)
    model.train()
    for _ in range(a.steps):
        for _ in range(a.accumulation):
            frames = torch.randn(a.batch, FRAMES, FEATURES).cuda()
            padding = torch.zeros(a.batch, FRAMES, dtype=torch.bool).cuda()
            signs = torch.randint(0, CLASSES, (a.batch,)).cuda()
            loss = loss_of(model(frames, padding), signs) / a.accumulation
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    print("peak allocated", torch.cuda.max_memory_allocated(), "reserved", torch.cuda.max_memory_reserved())


if __name__ == "__main__":
    main()
