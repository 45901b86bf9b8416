"""Samples of the digits data that stay in memory."""

from typing import Any

from agvm_mm.validation import check_choice, type_name

# Transforms that give the same result each time; so do those named ``Pack...``. Others
# may draw random numbers, which a cached sample would keep.
DETERMINISTIC = ('LoadImageFromFile', 'LoadAnnotations', 'Resize')

# By the settings of a dataset: later runs of the same process find the samples loaded.
_SAMPLES: dict[str, dict[int, Any]] = {}


class CacheMixin:
    """Mixin for datasets: loads and packs each sample once in each process.

    Needs ``num_workers=0`` to pay off: workers that are started again are empty.

    Args:
        *args: Those of the dataset.
        cache: Whether to keep the samples in memory. Defaults to False.
        **kwargs: Those of the dataset.

    Raises:
        ValueError: If the pipeline of a cached dataset may draw random numbers.
    """

    def __init__(self, *args: Any, cache: bool = False, **kwargs: Any) -> None:
        self._samples: dict[int, Any] | None = None
        if cache:
            for transform in kwargs.get('pipeline', ()):
                name = type_name(transform['type'])
                if not name.startswith('Pack'):
                    what = 'a transform of a dataset with cache=True'
                    check_choice(what, name, DETERMINISTIC)
            key = repr((type(self), args, sorted(kwargs.items())))
            self._samples = _SAMPLES.setdefault(key, {})
        super().__init__(*args, **kwargs)

    def prepare_data(self, idx: int) -> Any:
        """Return the sample of an index, see MMEngine's ``BaseDataset``."""
        if self._samples is None:
            return super().prepare_data(idx)
        if idx not in self._samples:
            self._samples[idx] = super().prepare_data(idx)
        return self._samples[idx]
