"""Measuring a model: votes, pass@k, reranking and their intervals."""
