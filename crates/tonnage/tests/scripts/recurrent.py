"""Recurrent layers of every kind through cuDNN."""
import torch
from torch import nn

for kind, kw in [
    (nn.LSTM, {}),
    (nn.LSTM, {"bidirectional": True, "dropout": 0.1}),
    (nn.LSTM, {"proj_size": 32}),
    (nn.GRU, {"batch_first": True}),
    (nn.RNN, {}),
]:
    layer = kind(128, 256, num_layers=2, **kw).cuda()
    flat = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in layer.parameters()}
    print("weights", kind.__name__, sum(flat.values()), sum(p.nbytes for p in layer.parameters()))
    optimizer = torch.optim.AdamW(layer.parameters())
    for step in range(2):
        y, _ = layer(torch.randn(50, 8, 128, device="cuda"))
        y.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
packed = nn.utils.rnn.pack_padded_sequence(torch.randn(20, 4, 128), [20, 15, 9, 3]).to("cuda")
nn.LSTM(128, 64).cuda()(packed)[0].data.sum().backward()
with torch.no_grad():
    nn.GRU(128, 64).cuda().half().eval()(torch.randn(20, 4, 128, device="cuda", dtype=torch.half))
