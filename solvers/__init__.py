"""Placement solvers: the problem, the placement, one evaluator, lower bounds, and one module per algorithm.

Import the module that is about your question: `solvers.problem` and `solvers.placement` (the domain),
`solvers.objective` (the one evaluator), `solvers.registry` (which solvers exist and can run here).
"""
