"""Tests of the floor `twin`."""
