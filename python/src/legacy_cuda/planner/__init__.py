"""Models and GPUs to a placement: what lies where, how much memory it takes, about how fast it is.

Pure but for the readers of model files (:mod:`.gguf`, :mod:`.safetensors`), which only read. It
counts as llama.cpp of the pinned sources does; ``docs/plan.md`` says how, and how near it comes.
"""
