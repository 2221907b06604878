"""Comparing finished runs: suites, their reports, ratings by people."""
