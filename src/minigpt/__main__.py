"""`python -m minigpt`, the same as the `minigpt` command."""

import os
import sys

from minigpt.cli import main

if __name__ == "__main__":
    several = os.environ.get("WORLD_SIZE", "1") != "1"
    if several:  # or PyTorch adds forty lines of its own to the sentence about a lost connection
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    status = main()
    if several:  # now and then a thread of gloo's aborts the interpreter while it takes itself down, all work done
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
