"""Training: the train step, and what a run keeps (state, optimizer, checkpoints, metrics).

The names that a config may choose from stand here, so that a config can be checked without the code of training.
"""

OPTIMIZERS = ("adamw", "muon", "adafactor", "lion")
SCHEDULES = ("cosine", "linear", "constant", "wsd")  # of the learning rate
STUDENT_STREAMS = ("together", "apart")  # how a student's video and actions move
SINKS = ("tensorboard", "wandb")  # of metrics, beside the workdir
