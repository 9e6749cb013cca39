"""Fully sharded data parallel over the processes that torchrun starts."""
import os

import torch
import torch.distributed as dist
from plain import Model
from torch.distributed.fsdp import fully_shard


def main():
    dist.init_process_group("nccl")
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    model = Model(width=512).cuda()
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(3):
        ids = torch.randint(0, 2000, (8, 128), device="cuda")
        logits = model(ids)
        loss = torch.nn.functional.cross_entropy(logits.view(-1, 2000), ids.view(-1))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    print("allocated", torch.cuda.max_memory_allocated(), "reserved", torch.cuda.max_memory_reserved(), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
