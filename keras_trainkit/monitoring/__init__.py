"""What `callbacks.TrainingMonitor` measures with and writes to."""
