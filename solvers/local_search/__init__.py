"""Local search over placements: empty GPUs and fill them again, and exchange adapters, while the budget lasts.

`solvers.local_search.solver` is the solver; `moves` is compiled and loads Numba.
"""
