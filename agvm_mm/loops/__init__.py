"""Training loops that count optimizer updates on a total batch size."""

from agvm_mm.loops.loops import LargeBatchIterTrainLoop, LargeBatchTrainLoop

__all__ = ['LargeBatchIterTrainLoop', 'LargeBatchTrainLoop']
