"""Training on a cluster: SLURM starts the worker of each run, in the tasks of a job array."""
