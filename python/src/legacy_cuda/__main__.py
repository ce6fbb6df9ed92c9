"""``python -m legacy_cuda`` is ``legacy-cuda``."""

import sys

from legacy_cuda.cli import main

if __name__ == "__main__":
    sys.exit(main())
