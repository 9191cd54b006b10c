"""Watch a training: its epochs as a table, its curves as a picture, and what is wrong with them.

Reads the log that FileTrainLogger writes, of any recipe, while it is being written or afterwards.
An epoch number that falls or repeats begins a new run, which is judged by itself. The flags:

  error    nonfinite    the loss is nan or inf
  error    zero-loss    the loss is exactly 0.0, as it is reported where no loss of a stage was finite
  error    divergence   the training loss rises past twice the first epoch's; or has halved, and is back there to stay
  warning  nonfinite    another value is nan or inf
  warning  zero-loss    a test loss is exactly 0.0, or all validation losses are: perhaps it is not computed
  warning  overfitting  the last 5 validation losses are on average a tenth above the best 5 in a row, and beyond their noise;
                        the training loss fell meanwhile, and no other validation value improved
  warning  plateau      for 10 epochs, and a quarter of all, nothing has improved by more than printed digits can tell
  warning  slow         an epoch took twice as long as is usual for those that report the same, and 10 seconds more

Times are taken from log.txt beside the log; with --follow also from when a line arrives.
Exit status: 0, or 1 if an error was flagged, or 2 for wrong usage.
"""
