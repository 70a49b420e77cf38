from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def select(
    config: str,
    plan: dsl.Input[dsl.Artifact],
    train: dsl.Input[dsl.Dataset],
    validation: dsl.Input[dsl.Dataset],
    trained: dsl.Input[list[dsl.Model]],
    selection: dsl.Output[dsl.Artifact],
) -> str:
    """Compare all candidates on the same rows, paired; returns the winner."""
    from rareclass.services.kubeflow import steps

    paths = [each.path for each in trained]
    return steps.select(config, plan.path, train.path, validation.path, paths, selection.path)
