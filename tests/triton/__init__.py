"""Triton's part of the tests: a corpus of kernels and the matrix of what compiles where."""
