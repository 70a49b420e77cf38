"""Kubernetes and what stands on it: the compiled pipeline, Kubeflow Pipelines, and the objects that serve a version.
What the chart installs is not made here, only what a command changes."""

from rareclass.adapters.cluster.dask import DaskPods, dask_cluster
from rareclass.adapters.cluster.kubeflow import Access, Kubeflow, Submitted
from rareclass.adapters.cluster.local import PipelineFailedError, compiled, run_local
from rareclass.adapters.cluster.serving import VERSION_ANNOTATION, Workload, ask
from rareclass.adapters.cluster.spec import Placement, digest, placed

__all__ = [
    "VERSION_ANNOTATION",
    "Access",
    "DaskPods",
    "Kubeflow",
    "PipelineFailedError",
    "Placement",
    "Submitted",
    "Workload",
    "ask",
    "compiled",
    "dask_cluster",
    "digest",
    "placed",
    "run_local",
]
