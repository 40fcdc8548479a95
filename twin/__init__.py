"""The digital twin of a vLLM replica: what is asked of it, what it is made of, and what it then does, step by step.

Import the module that is about your question: `twin.workload` (adapters and their traffic), `twin.engine`,
`twin.hardware` and `twin.memory` (a replica and whether it starts), `twin.profile` (how long a step takes),
`twin.simulate` (run it). The scheduler rules that every engine follows stand in `twin/semantics.md`.
"""
