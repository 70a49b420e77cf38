from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def resample(
    config: str,
    group: str,
    plan: dsl.Input[dsl.Artifact],
    train: dsl.Input[dsl.Dataset],
    validation: dsl.Input[dsl.Dataset],
    resampled: dsl.Output[dsl.Dataset],
):
    """Rebalance the training rows of every fold for one group of candidates."""
    from rareclass.services.kubeflow import steps

    resampled.metadata["rows"] = steps.resample(config, group, plan.path, train.path, validation.path, resampled.path)
