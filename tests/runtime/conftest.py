"""Makes `toy` importable, here and in the child processes, which inherit sys.path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
