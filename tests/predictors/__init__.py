"""Tests of the floor `predictors`."""
