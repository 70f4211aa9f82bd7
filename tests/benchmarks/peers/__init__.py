"""One distillation cell, trained by kdbench and by others, side by side.

Run it as ``python -m tests.benchmarks.peers --help`` tells.

Every contender gets the same networks with the same first weights, the same images, augmentation, recipe and
loss, in a process of its own; time is taken in one way for all (:mod:`.clock`). That they train the same is
tested in ``tests/benchmarks/test_peers_same_training.py``.
"""
