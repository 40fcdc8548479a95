"""Surrogates of the twin: the features of an adapter set, and models that predict in microseconds what it would do.

Import the module that is about your question: `predictors.features` (what a model sees), `predictors.surrogate` (the
interface and its implementations). Shipped models and their cards are in `predictors/models`.
"""
