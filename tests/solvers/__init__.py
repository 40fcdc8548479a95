"""Tests of the floor `solvers`."""
