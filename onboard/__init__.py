"""The agent on the flight computer."""

import os

# Before anything imports numpy: OpenBLAS starts a thread and reserves its buffers for every core it finds.
# The agent's matrix products are onnxruntime's, so one thread is all it needs, and 30 MB of address space a
# core are not charged to its memory limit.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
