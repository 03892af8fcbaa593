"""`python -m sagkit.pilot`: the command `sagkit pilot`."""

import sys

from sagkit.__main__ import main

main(["pilot", *sys.argv[1:]])
