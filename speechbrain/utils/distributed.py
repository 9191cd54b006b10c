"""How a process of torchrun ends. The rest of this module is upstream's."""

import atexit
import time

import torch
from speechbrain.utils.distributed import _upstream_ddp_init_group  # upstream's own

# How long a process waits at its end for gloo's threads, in seconds.
LAST_MOMENT = 0.2


def ddp_init_group(run_opts):
    """Make this process one of torchrun's; without torchrun do nothing.

    Upstream's lets the process end at once after the last collective. A thread of
    gloo lets go of that one's tensors a moment later, for which it needs the
    interpreter, and aborts the process if that has gone: one of ten trainings
    ended with an error of torchrun's (PyTorch's issue 190489).

    Arguments
    ---------
    run_opts : dict
        Of it, ``distributed_backend`` counts: ``nccl``, ``gloo`` or ``mpi``.

    Raises
    ------
    ValueError
        If that backend cannot be had here.

    Example
    -------
    >>> ddp_init_group({"distributed_backend": "gloo"})
    """
    _upstream_ddp_init_group(run_opts)
    if torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_backend() == "gloo":
        atexit.register(time.sleep, LAST_MOMENT)  # lets other threads have the interpreter
