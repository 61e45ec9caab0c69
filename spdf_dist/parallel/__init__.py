"""Process groups, the division of global tensors among the ranks, and the sparse column- and row-parallel linears.

Importing the package silences the messages that megatron-core and DeepSpeed print on import.
"""

import logging
import os
import warnings
from pathlib import Path

os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
for message in (
    ".*[Aa]pex.*",
    ".*[Tt]ransformer.?[Ee]ngine.*",
    ".*all_gather_into_tensor.*",
    ".*pynvml.*",
    ".*barrier.*device.*",
    ".*custom_fwd.*",
    ".*custom_bwd.*",
    ".*lr_scheduler.*",
    "full scope is deprecated.*",
):
    warnings.filterwarnings("ignore", message=message)
warnings.filterwarnings("ignore", category=FutureWarning, module="deepspeed.*|megatron.*|torch.distributed.*")
for logger in ("DeepSpeed", "megatron", "torch.distributed.elastic", "torch.utils.cpp_extension"):
    logging.getLogger(logger).setLevel(logging.ERROR)
