"""`python -m sagkit.assess`: the command `sagkit assess`."""

import sys

from sagkit.__main__ import main

if __name__ == "__main__":
    main(["assess", *sys.argv[1:]])
