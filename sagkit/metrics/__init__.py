"""How good features are.

local (kNN, linear probe); semantic (rank correlation with a reference), for which kinds has the distances, ranks the
exact statistics, stats their uncertainty and compare the verdicts; tree (hierarchy); labelfree (no labels).
"""
