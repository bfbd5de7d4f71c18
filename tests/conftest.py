"""What must be settled before the first test imports torch."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    # tests run side by side, a core each: threads of one would only wait for those of another
    os.environ.setdefault("OMP_NUM_THREADS", "1")
