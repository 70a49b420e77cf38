"""One training run, from the source to a registered version: its steps, how they run here and on Kubeflow, and
what is read from runs afterwards. What answers requests or watches them lives next door."""
