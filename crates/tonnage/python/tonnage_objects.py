"""Collectives of Python objects over NCCL. Their sizes are compared and summed on the device, where nothing is computed; so the objects
travel on the host. The real functions run first, for the memory that they use on the device."""
import functools
import inspect
import pickle


def install(torch, lone):
    """`lone`: the other ranks are not there. What one would send is then taken to be what this one sends; where this one only
    receives, nothing is known, and that is said."""
    try:
        import torch.distributed as dist
        import torch.distributed.distributed_c10d as c10d
    except ImportError:
        return
    if not dist.is_available():
        return
    calls = {}

    def swap(group, mine):
        """The objects of all ranks of a group, by rank in it."""
        data = pickle.dumps(mine)
        n, rank = dist.get_world_size(group), dist.get_rank(group)
        if lone:
            return [pickle.loads(data) for _ in range(n)]
        name = (group or c10d._get_default_group()).group_name
        calls[name] = calls.get(name, 0) + 1
        store, key = c10d._get_default_store(), f"tonnage/{name}/{calls[name]}"
        store.set(f"{key}/{rank}", data)
        return [mine if r == rank else pickle.loads(store.get(f"{key}/{r}")) for r in range(n)]

    def source(given):
        """The sending rank, in the group."""
        group, src = given.get("group"), given.get("group_src")
        if src is not None:
            return src
        src = given.get("src") or 0
        return src if group is None else dist.get_group_rank(group, src)

    def unknown(name, src):
        raise RuntimeError(
            f"tonnage: {name}: this process runs alone as rank {dist.get_rank()} of {dist.get_world_size()}, and the object that rank "
            f"{src} would send is not known here; dry-run --rank {src}, or start all processes (torchrun) without --world"
        )

    def all_gather(given, name):
        given["object_list"][:] = swap(given.get("group"), given["obj"])

    def gather(given, name):
        all_of = swap(given.get("group"), given["obj"])
        if given.get("object_gather_list") is not None:
            given["object_gather_list"][:] = all_of

    def broadcast(given, name):
        group, src = given.get("group"), source(given)
        sends = dist.get_rank(group) == src
        if lone and not sends and all(x is None for x in given["kept"]):
            unknown(name, src)
        all_of = swap(group, given["kept"] if lone or sends else None)
        given["object_list"][:] = all_of[src] if not sends else given["kept"]

    def scatter(given, name):
        group, src = given.get("group"), source(given)
        sends = dist.get_rank(group) == src
        objects = given.get("scatter_object_input_list")
        if lone and not sends:
            unknown(name, src)
        all_of = swap(group, list(objects) if sends else None)
        given["scatter_object_output_list"][0] = all_of[src][dist.get_rank(group)]

    for name, rule in [
        ("all_gather_object", all_gather),
        ("gather_object", gather),
        ("broadcast_object_list", broadcast),
        ("scatter_object_list", scatter),
    ]:
        real = getattr(c10d, name, None)
        if real is not None:
            over = _over(torch, dist, c10d, real, rule, name)
            setattr(c10d, name, over)
            setattr(dist, name, over)


def _over(torch, dist, c10d, real, rule, name):
    signature = inspect.signature(real)
    full = getattr(torch, "OutOfMemoryError", MemoryError)

    @functools.wraps(real)
    def wrapped(*args, **kwargs):
        given = dict(signature.bind(*args, **kwargs).arguments)
        group = given.get("group")
        device = given.get("device") or c10d._get_object_coll_device(group)
        if dist.get_rank(group) < 0 or not str(device).startswith("cuda"):
            return real(*args, **kwargs)
        given["kept"] = list(given.get("object_list") or [])
        if name != "scatter_object_list":
            try:
                real(*args, **kwargs)
            except full:
                raise
            except (pickle.UnpicklingError, EOFError, ValueError, RuntimeError, IndexError, ImportError, AttributeError):
                # bytes of which the device knows nothing are no object
                pass
        return rule(given, name)

    return wrapped
