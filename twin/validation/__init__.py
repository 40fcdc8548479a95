"""Compare the twin with measured serving runs: read a table of runs, replay each, score what comes out."""
