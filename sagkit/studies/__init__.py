"""What this repository's own results are made with: each study reads committed records or trains, and leaves one.

Nothing outside this wing imports it. `sagkit study` lists the studies and runs one.
"""
