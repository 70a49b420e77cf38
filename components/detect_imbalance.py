from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def detect_imbalance(
    config: str,
    ingested: dsl.Input[dsl.Artifact],
    train: dsl.Input[dsl.Dataset],
    validation: dsl.Input[dsl.Dataset],
    plan: dsl.Output[dsl.Artifact],
) -> list:
    """Say how rare and how hard, and plan the candidates; the groups share a resampling chain."""
    from rareclass.services.kubeflow import steps

    return steps.detect_imbalance(config, ingested.path, train.path, validation.path, plan.path)
