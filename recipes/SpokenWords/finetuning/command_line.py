"""What train.py and pretrain.py do before they import what takes seconds: they answer --help."""

import sys


def start(description):
    """Print the options of the script and exit, if they are asked for.

    Arguments
    ---------
    description : str
        The docstring of the script.
    """
    if {"-h", "--help"} & {*sys.argv[1:]}:
        print(f"{description}\nEach key of the YAML is an option. SpeechBrain adds these options:\n", flush=True)
        import speechbrain

        speechbrain.parse_arguments(sys.argv[1:])  # prints them and exits
