"""Benchmark of the search against its peers: landscapes with a known optimum, one start, six methods, their results."""
