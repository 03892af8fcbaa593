"""`python -m sagkit.train`: the command `sagkit train`."""

from sagkit.train.trainer import main

main()
