"""``vllm serve`` where there is no GPU: all of it but the worker, whose answers are made up.

    python without_gpu.py serve FOLDER --worker-cls made_up.Worker ...

FOLDER is one that ``models.py`` made. Greedy prompts that ``expected.json`` has are answered as it
says, all others with any tokens. NVML is stood in for, as in ``configurations.py``. It shows what
the processes of the server do with a load, not what a model computes.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
from configurations import stand_in

stand_in("Tesla P40", "6.1", 24576, 1)  # before anything of vLLM, in each of its processes

if __name__ == "__main__":
    from vllm.entrypoints.cli.main import main

    main()
