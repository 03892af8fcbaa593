"""`python -m sagkit.pilot`: the command `sagkit pilot`."""

from sagkit.pilot.run import main

main()
