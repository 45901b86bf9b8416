"""End of a training that diverged."""

from collections.abc import Sequence

from mmengine.hooks import Hook
from mmengine.runner import Runner


class StopAtDivergence(Hook):
    """Hook that ends a training whose loss or parameters are not finite.

    Heads need not survive such parameters, and metrics of them mean nothing.
    """

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Sequence | None = None,
        outputs: dict | None = None,
    ) -> None:
        """Check the loss and the parameters of an update.

        Raises:
            FloatingPointError: If one of them is not finite.
        """
        values = {'loss': outputs['loss'], **dict(runner.model.named_parameters())}
        for name, value in values.items():
            if not value.isfinite().all():
                raise FloatingPointError(
                    f'{name} is not finite after update {batch_idx + 1}'
                )
