"""python -m everface."""

import sys

from everface.cli import main

if __name__ == "__main__":
    sys.exit(main())
