"""Where a run's time went, over all its restarts: steps that count, and everything else.

    python -m launch.goodput WORKDIR

Training writes WORKDIR/goodput.jsonl; launch/supervision/ledger.py says what is in it.
"""

import sys
from pathlib import Path

from launch.supervision.ledger import read_attempts, summarize

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        print(summarize(read_attempts(Path(sys.argv[1]) / "goodput.jsonl")))
    except (ValueError, OSError) as problem:
        sys.exit(f"goodput: {problem}")
