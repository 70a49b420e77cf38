"""The training pipeline on Kubeflow: its steps with files between them, its local runner, and how a run is submitted.
What a step does is in the other rooms; nothing in them knows of this one."""
