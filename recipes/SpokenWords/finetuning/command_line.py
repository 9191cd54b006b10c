"""What train.py and pretrain.py do before the imports that take seconds."""

import os
import sys


def start(description):
    """Say that the script has started; with ``--help`` print its options and exit.

    Arguments
    ---------
    description : str
        The docstring of the script.
    """
    name = os.path.basename(sys.argv[0])
    print(f"{name}: importing PyTorch and SpeechBrain, which takes some seconds", file=sys.stderr, flush=True)
    if {"-h", "--help"} & {*sys.argv[1:]}:
        print(f"{description}\nEach key of the YAML is an option. SpeechBrain adds these options:\n", flush=True)
        import speechbrain

        speechbrain.parse_arguments(sys.argv[1:])  # prints them and exits
