"""What decides between placements with equal objectives: few moves, and room on the fullest GPU.

`solvers.secondary.solver` is the wrapper around every solver; `bring_home` and `balance` are the two searches.
"""
