"""Measure a real vLLM: run a workload against it and write down what the twin would report.

`twin.measurement.in_process` runs vLLM's engine in a process of its own and sees every step;
`twin.measurement.endpoint` talks to any OpenAI-compatible server. Both write a folder (`twin.measurement.folder`) whose
tables `placer calibrate` reads.
"""
