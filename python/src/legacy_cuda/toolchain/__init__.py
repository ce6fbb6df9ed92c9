"""A CUDA toolkit and its host compiler in one folder, pinned and complete enough to compile."""
