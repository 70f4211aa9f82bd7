"""From a data set to batches: splits, resident and streaming pipelines, views."""
