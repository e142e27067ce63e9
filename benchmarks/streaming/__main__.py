"""``python -m benchmarks.streaming``."""

import sys

from benchmarks.streaming.versus import main

if __name__ == "__main__":
    sys.exit(main())
