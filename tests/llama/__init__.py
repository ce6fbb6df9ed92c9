"""llama.cpp as it is built here: tiny models, the same tokens on a CPU and on a (replayed) GPU."""
