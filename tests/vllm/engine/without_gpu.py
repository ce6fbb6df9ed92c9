"""``vllm serve`` where there is no GPU: all of it but the worker, whose answers are made up.

    python without_gpu.py serve FOLDER --worker-cls made_up.Worker ...

FOLDER is one that ``models.py`` made. Greedy prompts that ``expected.json`` has are answered as it
says, all others with tokens that are made up, to their full length. NVML is stood in for, as in
``configurations.py``. It shows what the processes of the server do with a load, not what a model
computes.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
from configurations import stand_in

# Before vLLM asks NVML. Its processes are spawned, and run this file too.
stand_in("Tesla P40", "6.1", 24576, 1)

if __name__ == "__main__":
    from vllm.entrypoints.cli.main import main

    main()
