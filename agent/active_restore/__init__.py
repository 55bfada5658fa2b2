"""Active Restore for Linux: let a system run while its content still streams in from the backup."""

import os

__version__ = "0.1.0"

# numpy's BLAS would start a thread for each processor in every process of ours: 40 ms each, and we multiply nothing.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
