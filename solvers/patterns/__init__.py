"""Column generation over patterns: counts of adapter types that fit one GPU.

`solver` has the solver `patterns`; `questions` asks about patterns, `pricing` finds those that pay under given dual
values, `master` is the linear program over the patterns known so far, `generation` and `dive` use both, `repair` turns
patterns into GPUs, and `farley` with `box_bounds`, `division` and `linear_prices` proves how few GPUs are possible.
"""
