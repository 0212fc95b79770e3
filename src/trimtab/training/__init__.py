"""Tune an adapter: the training loop, its inputs, and the folder of a run."""
