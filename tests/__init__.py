"""Tests: one folder per floor, one module per module."""
