"""What the library gives on this machine, beside NumPy and PyTorch: ``numbadrop bench``.

All contestants of a contest are checked against float64, and then take turns in one process.
"""

from numbadrop.bench.clock import Quartiles, Run, quartiles
from numbadrop.bench.roof import bandwidth, peak

__all__ = ["Quartiles", "Run", "bandwidth", "peak", "quartiles"]
