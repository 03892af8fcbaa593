"""What this repository's own results are made with.

Nothing outside this wing imports it, and `sagkit study` lists its commands:

train and record    ledger, tune, confirm, select_pairing
embeddings          zoo (of records' encoders), objectives and trainings behind kinds_zoo (of twelve kinds)
judge and record    versus, sharpen, transfer, validity and kinds_validity (over a zoo), purity, line
pages               tables, branches, cost, benchmarks, figures, results
toys                spectral (notebook 01)
"""
