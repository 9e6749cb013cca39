"""One process as rank R of a world of N: the rendezvous store answers for the ranks that are not there, and the null NCCL for what they
would send. Only `tonnage dry-run --world N --rank R` uses it."""
import datetime

_kept = []


def install(torch):
    try:
        import torch.distributed as dist
        import torch.distributed.distributed_c10d as c10d
    except ImportError:
        return
    if not dist.is_available():
        return

    class Lone(dist.Store):
        """Everything that is waited for is there: counters jump to the world's size, absent keys have plausible bytes."""

        def __init__(self, world):
            super().__init__()
            self.world, self.kept = world, {}
            self._timeout = datetime.timedelta(seconds=1800)

        def set(self, key, value):
            self.kept[key] = value if isinstance(value, bytes) else str(value).encode()

        def get(self, key):
            if key in self.kept:
                return self.kept[key]
            # an NCCL unique id is 128 bytes; so is everything else that a rank fetches and we do not have
            return b"\0" * 128

        def add(self, key, amount):
            n = int(self.kept.get(key, b"0")) + amount
            if amount > 0:
                # the other ranks have been here, too
                n = max(n, self.world * amount)
            self.kept[key] = str(n).encode()
            return n

        def compare_set(self, key, expected, desired):
            self.set(key, desired)
            return self.kept[key]

        def wait(self, keys, timeout=None):
            return None

        def check(self, keys):
            # asked for signals of trouble, too, which nobody sends
            return all(k in self.kept for k in keys)

        def delete_key(self, key):
            return self.kept.pop(key, None) is not None

        def num_keys(self):
            return len(self.kept)

        def set_timeout(self, timeout):
            self._timeout = timeout

        @property
        def timeout(self):
            return self._timeout

        def has_extended_api(self):
            return False

    def rendezvous(url, rank=-1, world_size=-1, **kwargs):
        import os

        world = int(os.environ["WORLD_SIZE"])
        # C++ keeps only its half of a Python store
        _kept.append(Lone(world))
        yield _kept[-1], int(os.environ["RANK"]), world

    c10d.rendezvous = rendezvous
