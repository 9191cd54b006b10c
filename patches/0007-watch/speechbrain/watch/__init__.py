"""Read a training log and say what is wrong with the training.

Prints the epochs as a table, marks the best epoch, and lists below an epoch what is wrong with it. Works on the log that
FileTrainLogger writes (train_log.txt) in any recipe, during the training or afterwards.

A log may contain several runs: a new run begins where an epoch number repeats or falls. Each run is judged separately.

It raises these flags:

  error    nonfinite    the loss is nan or inf
  error    zero-loss    the loss is exactly 0.0, as stock SpeechBrain reports it if no loss of a stage was finite
  error    divergence   the training loss rises above twice its value in the first epoch, or it had halved and is back
                        at that value for three epochs
  warning  nonfinite    a value other than the loss is nan or inf
  warning  zero-loss    the test loss, or every validation loss, is exactly 0.0: perhaps the recipe does not compute it
  warning  overfitting  the last 5 validation losses are on average 10 % above the best 5 in a row, by more than noise
                        explains; meanwhile the training loss fell and no other validation value improved
  warning  plateau      for 10 epochs, and at least a quarter of the run, no value improved by more than rounding explains
  warning  slow         an epoch took over twice as long as is usual for epochs that log the same values, and over
                        10 seconds longer

The times of the epochs come from log.txt in the same folder; with --follow, also from when a line arrives.

Exit status: 0 if no error was flagged, 1 if one was, 2 for wrong usage.
"""
