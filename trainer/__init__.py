"""Trains a student from cached signals, with no teacher in the process.

Rooms, in order; each imports only those before it::

    student    the model: building it, loading it, reading hidden states, attention and FFN inputs off it
    losses     what is learned: targets, losses and their table, the objective
    data       from caches to batches: which samples, in which order
    run        bookkeeping: checkpoints and resume, metrics, progress, the final model
    rounds     generate, score and train in turns, each by a command of its own; loads no model
    api        the same for training loops of others
    evaluate < loop < distiller < train_student_cli
"""
