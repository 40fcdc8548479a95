"""Placement rules of other serving systems, each asked for the least number of GPUs with which it works.

They are here to be compared with; see the table in docs/solvers.md for what each decides and ignores.
"""
