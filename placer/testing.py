"""Check a surrogate of your own, a file or an object; docs/bring-your-own-surrogate.md says how to make one.

Examples
--------
>>> from placer.testing import check_surrogate
>>> report = check_surrogate("mine.onnx", profile="llama-3.1-8b-h100-64gb")  # doctest: +SKIP
>>> [check.name for check in report.warnings]  # doctest: +SKIP
"""

from predictors.contract import Check, SurrogateCheck, check_surrogate, probe_features

__all__ = ["Check", "SurrogateCheck", "check_surrogate", "probe_features"]
