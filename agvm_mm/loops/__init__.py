"""Training loops that count optimizer updates on a total batch size."""

from agvm_mm.loops.loops import (
    LargeBatchIterTrainLoop,
    LargeBatchMixin,
    LargeBatchTrainLoop,
    pop_resume_switch,
)

__all__ = [
    'LargeBatchIterTrainLoop',
    'LargeBatchMixin',
    'LargeBatchTrainLoop',
    'pop_resume_switch',
]
