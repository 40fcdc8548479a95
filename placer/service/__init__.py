"""The HTTP service: jobs that are accepted, kept in a database, and done by worker processes with limits.

Importing this package loads nothing. What serves HTTP is in `placer.service.app` and needs the extra ``serve``; what
works (`placer.service.worker`) and what both sides say (`placer.service.documents`) do without it.
"""
