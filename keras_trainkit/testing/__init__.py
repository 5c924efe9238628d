"""For tests of optimizers, ours and third parties': contracts, problems, and slow NumPy twins."""
