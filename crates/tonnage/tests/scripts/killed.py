"""A run that is killed in the middle."""
import os
import signal
import sys
import time

import torch

print("device", torch.cuda.get_device_name(0), file=sys.stderr)
kept = []
for step in range(300):
    kept.append(torch.empty(1 << 20, device="cuda"))
    time.sleep(0.02)
os.kill(os.getpid(), signal.SIGKILL)
