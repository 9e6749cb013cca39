#!/usr/bin/env python3
"""Records training steps of the SPOTER classifier: the `spoter-*` rows of groundtruth/torch-trace-own.jsonl.

    tools/record_spoter.py ORACLE_FOLDER CASE.json [--annotate] [--plain] [--trace OUT.jsonl.gz]

ORACLE_FOLDER has the recorder of the other torch-run records (`oracle.py`: allocator history of one training case); this file adds
the model, its batch and its loss. Run it on a null CUDA device (a preloaded library that stands in for the CUDA runtime) or a GPU.
"""
import glob, importlib.util, json, os, sys

import torch
import torch.nn as nn
import torch.nn.functional as F


class Spoter(nn.Module):
    """Pose encoder: class token, learned positions, post-norm encoder layers with a key padding mask, a three-layer head."""

    def __init__(self, input_dim=108, d_model=108, n_heads=9, n_layers=8, d_ff=512, dropout=0.15, num_classes=60, max_seq_len=150):
        super().__init__()
        self.input_block = nn.Sequential(nn.Linear(input_dim, d_model), nn.LayerNorm(d_model), nn.Dropout(dropout / 2))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, d_model))
        self.pos = nn.Parameter(torch.zeros(1, max_seq_len + 1, d_model))
        layer = nn.TransformerEncoderLayer(d_model, n_heads, d_ff, dropout, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, n_layers)
        self.head = nn.Sequential(nn.LayerNorm(d_model), nn.Linear(d_model, d_model), nn.GELU(), nn.Dropout(dropout),
                                  nn.Linear(d_model, d_model // 2), nn.GELU(), nn.Dropout(dropout), nn.Linear(d_model // 2, num_classes))

    def forward(self, x, mask):
        x = self.input_block(x)
        x = torch.cat([self.cls_token.expand(x.size(0), -1, -1), x], dim=1)
        x = x + self.pos[:, :x.size(1)]
        mask = torch.cat([mask.new_zeros(mask.size(0), 1), mask], dim=1)
        x = self.encoder(x, src_key_padding_mask=mask)
        return self.head(x[:, 0])


def main():
    folder, case = sys.argv[1], sys.argv[2]
    name = next(p for p in ("oracle2.py", "oracle.py") if os.path.exists(os.path.join(folder, p)))
    spec = importlib.util.spec_from_file_location("oracle", os.path.join(folder, name))
    oracle = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(oracle)

    def build(m, precision, attn):
        with torch.device("meta"):
            return Spoter(**m["args"])

    def make_batch(c, m, dev="cuda"):
        b, s = c["batch"], c["seq"]
        mask = torch.zeros(b, s, dtype=torch.bool)
        mask[:, s - s // 4:] = True
        x = torch.randn(b, s, m["args"].get("input_dim", 108))
        return dict(x=x.to(dev), mask=mask.to(dev), y=torch.randint(0, 60, (b,)).to(dev))

    def loss_of(c, m, model, batch):
        out = model(batch["x"], batch["mask"])
        return out, F.cross_entropy(out, batch["y"], label_smoothing=c.get("label_smoothing", 0.1))

    oracle.M.build, oracle.make_batch, oracle.loss_of = build, make_batch, loss_of
    c = json.load(open(case))
    trace = sys.argv[sys.argv.index("--trace") + 1] if "--trace" in sys.argv else None
    r = oracle.run(c, annotate="--annotate" in sys.argv, trace_to=trace)
    print(json.dumps(r))


if __name__ == "__main__":
    main()
