"""What a run of the study adds to an optimizer: AGVM, a fixed multiplier, or both."""

import json
import re
from dataclasses import dataclass

from agvm_mm.validation import check_choice

# With a space before each word.
NAME = re.compile(
    r'( agvm(?P<settings>( \w+=\S+)*))?'
    r'( x(?P<multiplier>\d+(\.\d+)?)( (?P<module>\w+))?)?'
)
SETTINGS = ('momentum', 'interval', 'ratio_bounds', 'estimator', 'anchor')


@dataclass(frozen=True)
class Variant:
    """Addition to an optimizer.

    Args:
        agvm: AGVM's settings, None for training without it.
        multiplier: Fixed multiplier of the learning rate.
        module: The module that is multiplied, None for all but the backbone.
    """

    agvm: dict | None
    multiplier: float = 1.0
    module: str | None = None


def parse_variant(text: str) -> Variant:
    """Return a variant from its name.

    Args:
        text: '' for the optimizer alone; 'agvm', with settings as in 'agvm
            momentum=0.97'; a multiplier, 'x2' for all modules but the backbone or 'x2
            neck' for one; or a multiplier after AGVM, 'agvm x2 neck'.

    Raises:
        ValueError: If it is none of these, or a setting is unknown.
    """
    found = NAME.fullmatch(text and f' {text}')
    if not found or float(found['multiplier'] or 1) == 0:
        raise ValueError(
            "--variants must be 'agvm', with settings as in 'agvm momentum=0.97', a "
            "multiplier as 'x1.4' or 'x2 neck', or both as 'agvm x2 neck', got "
            f'{text!r}'
        )
    options = None
    if found['settings'] is not None:
        options = dict(momentum=0.9, interval=1, estimator='replicas')
        for word in found['settings'].split():
            key, _, value = word.partition('=')
            check_choice('--variants', key, SETTINGS)
            try:
                options[key] = json.loads(value)
            except json.JSONDecodeError:
                options[key] = value
    return Variant(options, float(found['multiplier'] or 1), found['module'])
