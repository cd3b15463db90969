"""The training loop: optimiser, progress, distributed processes, resuming, and the records that a run keeps."""
