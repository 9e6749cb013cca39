"""Python objects between ranks."""
import torch
import torch.distributed as dist

dist.init_process_group("nccl")
torch.cuda.set_device(0)
rank, world = dist.get_rank(), dist.get_world_size()


def tried(name, call):
    try:
        print(name, call())
    except Exception as e:
        print(name, "refused:", e)


def all_gather():
    got = [None] * world
    dist.all_gather_object(got, {"rank": rank})
    return [x["rank"] for x in got]


def gather():
    got = [None] * world if rank == 0 else None
    dist.gather_object("x" * 300, got, dst=0)
    return got and len(got)


def broadcast():
    got = [{"seed": 5}] if rank == 0 else [None]
    dist.broadcast_object_list(got, src=0)
    return got[0]


def scatter():
    got = [None]
    dist.scatter_object_list(got, list(range(world)) if rank == 0 else None, src=0)
    return got[0]


for f in (all_gather, gather, broadcast, scatter):
    tried(f.__name__, f)
torch.zeros(1 << 20, device="cuda")
