from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def tune_threshold(
    config: str,
    train: dsl.Input[dsl.Dataset],
    validation: dsl.Input[dsl.Dataset],
    selection: dsl.Input[dsl.Artifact],
    tuning: dsl.Output[dsl.Artifact],
) -> float:
    """Calibrate and tune the operating points on out-of-fold scores; returns the threshold that decides."""
    from rareclass.services.kubeflow import steps

    return steps.tune_threshold(config, train.path, validation.path, selection.path, tuning.path)
