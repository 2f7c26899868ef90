"""`python -m minigpt`, the same as the `minigpt` command."""

import sys

from minigpt.cli import main

if __name__ == "__main__":
    sys.exit(main())
