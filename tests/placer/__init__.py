"""Tests of the floor `placer`."""
