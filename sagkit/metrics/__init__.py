"""How good features are: `local` (kNN, linear probe), `semantic` (rank correlations), `labelfree` (no labels)."""
