"""The search against its peers: landscapes with a known optimum, one start, six methods, and what came of it."""
