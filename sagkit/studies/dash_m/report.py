"""`python -m sagkit.report`: the command `sagkit report`."""

import sys

from sagkit.__main__ import main

if __name__ == "__main__":
    main(["report", *sys.argv[1:]])
