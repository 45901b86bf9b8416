"""ZeRO-1 with Adam under DDP: only one rank has the second moment of a parameter.

That rank alone rescales what DDP has reduced, and the norms are summed over the ranks.
SGD rescales nothing: the estimators of plain DDP serve.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.futures import Future

from agvm_mm.estimators.ddp import DDPEstimator, DDPHalves, DDPReplicas
from agvm_mm.estimators.preconditioner import AdamPreconditioner
from agvm_mm.estimators.reductions import widened
from agvm_mm.estimators.statistics import ModuleStatistics


class ZeroAdam(AdamPreconditioner):
    """Adam whose second moments are on this rank for some parameters only.

    Args:
        optimizer: Inner optimizer of ZeRO, which steps the parameters of this rank.
    """

    def has(self, parameter: nn.Parameter) -> bool:
        """Return whether this rank has the second moment of a parameter."""
        return id(parameter) in self._group_of


class ZeroEstimator(DDPEstimator):
    """Estimator over ranks, each of which measures the parameters that it steps."""

    def gradients_in(
        self, bucket: dist.GradBucket, flat: Tensor
    ) -> tuple[list[int], list[Tensor]]:
        found = zip(*super().gradients_in(bucket, flat), strict=True)
        has, parameters = self.preconditioner.has, self.rows.parameters
        own = [(row, view) for row, view in found if has(parameters[row])]
        return [row for row, _ in own], [view for _, view in own]

    def mean_over_ranks(self, table: Tensor) -> Tensor:
        """Return the sum over the ranks, of which one has each parameter."""
        return super().mean_over_ranks(table) * self._ranks


class ZeroHalves(ZeroEstimator, DDPHalves):
    """See :class:`DDPHalves`."""


class ZeroReplicas(ZeroEstimator, DDPReplicas):
    """See :class:`DDPReplicas`.

    A measured update reduces the squares of each bucket in addition to the mean, for
    the rank that rescales them.
    """

    columns = 2

    def reduce_measured(self, bucket: dist.GradBucket) -> Future[Tensor]:
        (squares,) = widened([bucket.buffer()])
        squares = squares.square().div_(self._ranks)
        mean_future = self._reduce_mean(self._group, bucket)
        square_future = dist.all_reduce(
            squares, group=self._group, async_op=True
        ).get_future()

        def add_norms(future: Future) -> Tensor:
            mean = mean_future.wait()
            if squares.is_cuda:
                # The callback runs on a stream of its own.
                squares.record_stream(torch.cuda.current_stream())
            rows, means = self.gradients_in(bucket, mean)
            # All replicas share v, so only the mean of their squares counts.
            _, roots = self.gradients_in(bucket, squares.sqrt_())
            parameters = [self.rows.parameters[row] for row in rows]
            if rows:
                norms = self.preconditioner.replica_norms
                self.keep(rows, norms(parameters, roots), norms(parameters, means))
            return mean

        return square_future.then(add_norms)

    def finish(self) -> dict[str, ModuleStatistics]:
        self.measuring = False
        columns = torch.stack([self.column(each) for each in self._norms])
        squares = self.mean_over_ranks(columns.square()) / self.total_weight**2
        return self.statistics_of_replicas(squares, self._ranks)
