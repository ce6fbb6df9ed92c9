"""torch.compile on old capabilities: programs to compile, with a GPU (replay) or without one."""
