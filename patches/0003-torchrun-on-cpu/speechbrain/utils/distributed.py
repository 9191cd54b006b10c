"""A process of torchrun ends without an abort."""

import atexit
import time

import torch

from speechbrain.utils.distributed import _upstream_ddp_init_group

# Seconds that a process waits at its end for the threads of gloo
GLOO_EXIT_DELAY = 0.2


def ddp_init_group(run_opts):
    _upstream_ddp_init_group(run_opts)
    # A thread of gloo releases the tensors of a collective a moment after the
    # collective has returned. It needs the interpreter for that, and aborts
    # the process if the interpreter is gone (PyTorch's issue 190489).
    if (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_backend() == "gloo"
    ):
        atexit.register(time.sleep, GLOO_EXIT_DELAY)
