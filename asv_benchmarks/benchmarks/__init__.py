"""The benchmarks that asv runs; see ../README.md.

They measure old commits too: what a commit does not have yet is skipped, and nothing is imported
from the programs beside this package.
"""

import os

# Before anything loads Numba. The machine code of one commit in one environment is never
# that of another, and its files can be counted.
if "ASV_ENV_DIR" in os.environ:
    os.environ["NUMBA_CACHE_DIR"] = os.path.join(
        os.environ["ASV_ENV_DIR"], "jit", os.environ.get("ASV_COMMIT", "unknown")
    )
