"""`python -m sagkit.train`: the command `sagkit train`."""

import sys

from sagkit.__main__ import main

main(["train", *sys.argv[1:]])
