"""Read a training log and say what is wrong with the training.

Prints the epochs as a table, marks the best epoch, and lists below an epoch what is wrong with it. Works on the log that
FileTrainLogger writes (train_log.txt, or log.txt, which has the same lines) in any recipe, during the training or afterwards.

A log may contain several runs: a new run begins where an epoch number repeats or falls. Each run is judged separately. If
nothing is named "loss", the only name that both the training and the validation have, such as si-snr, is the loss.

It raises these flags:

  error    nonfinite    the loss is nan or inf
  error    zero-loss    the loss is exactly 0.0, as stock SpeechBrain reports it if no loss of a stage was finite, or as CTC
                        is if each target is longer than its input; only a note if the loss had fallen close to 0.0
  error    divergence   the training loss rises above twice its value in the first epoch, or it had halved and is back
                        at that value for three epochs
  warning  nonfinite    a value other than the loss is nan or inf
  warning  zero-loss    the test loss, or every validation loss, is exactly 0.0: perhaps the recipe does not compute it
  warning  stuck        the loss is within 3 % of its start in each of the first 5 epochs, or printed the same
  warning  high-error   from the tenth epoch on, no error rate in percent was ever below 90
  warning  collapse     the loss falls ten-thousandfold in one epoch, below 1e-3, and stays there
  warning  lr-reset     after a restart, the learning rate is back at its first value
  warning  overfitting  the last 5 validation losses are on average 10 % above the best 5 in a row, by more than noise
                        explains; meanwhile the training loss fell and no other validation value improved
  warning  plateau      for 10 epochs, and at least a quarter of the run, no value improved by more than rounding explains
  warning  slow         an epoch took over twice as long as is usual for epochs that log the same values, and over
                        10 seconds longer

A later epoch can refute a flag: a new best refutes overfitting, for example. Such a flag is not printed. With --follow, the
flag is already there; then a note says "recovered at epoch N".

The times of the epochs come from log.txt in the same folder; with --follow, also from when a line arrives.

Exit status: 0 if no error was flagged, 1 if one was, 2 for wrong usage or a file that is not a log.
"""
