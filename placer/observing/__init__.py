"""What runs today as a workload: thin readers of logs, metrics and benchmarks, and one builder of a problem."""
