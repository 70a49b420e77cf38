from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluate(
    config: str,
    ingested: dsl.Input[dsl.Artifact],
    train: dsl.Input[dsl.Dataset],
    validation: dsl.Input[dsl.Dataset],
    test: dsl.Input[dsl.Dataset],
    selection: dsl.Input[dsl.Artifact],
    tuning: dsl.Input[dsl.Artifact],
    judgement: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
):
    """Touch the test rows once, compare with the champion and judge the recipe."""
    from rareclass.services.kubeflow import steps

    found = steps.evaluate(
        config, ingested.path, train.path, validation.path, test.path, selection.path, tuning.path, judgement.path
    )
    for name, value in found.items():
        metrics.log_metric(name, value)
