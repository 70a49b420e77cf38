"""Thin Kubeflow components: read, call one step, write, record. The logic is rareclass.services."""

import os

IMAGE = os.environ.get("RARECLASS_IMAGE", "rareclass/pipeline:0.1.0")
"""Image of every step; `rareclass submit` puts the configured one in its place."""
