from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def train(
    config: str,
    group: str,
    plan: dsl.Input[dsl.Artifact],
    train: dsl.Input[dsl.Dataset],
    validation: dsl.Input[dsl.Dataset],
    resampled: dsl.Input[dsl.Dataset],
    trained: dsl.Output[dsl.Model],
):
    """Fit the candidates of one group on every fold."""
    from rareclass.services.kubeflow import steps

    trained.metadata["candidates"] = steps.train_group(
        config, group, plan.path, train.path, validation.path, resampled.path, trained.path
    )
