"""The engine: handles and taps, data pipeline, optimizers, the loop, checkpoints, evaluation."""
