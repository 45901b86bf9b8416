"""Misspelled settings are refused with the nearest known name."""

import difflib

import pytest
from cases import for_each
from mmengine import registry
from mmengine.registry import Registry

from agvm_mm import AGVMAmpOptimWrapper
from agvm_mm.validation import argument_names, suggests_arguments

REGISTRIES = [r for r in vars(registry).values() if isinstance(r, Registry)]


def registered():
    """Return every class and function that we register, by name."""
    import demo.detection
    import demo.segmentation  # noqa: F401

    found = {
        name: target
        for one in REGISTRIES
        for name, target in one.module_dict.items()
        if target.__module__.startswith(('agvm_mm.', 'demo.'))
    }
    assert {'VarianceSyncHook', 'BaselineLARS', 'DigitsSegDataset'} <= found.keys()
    return found


def misspell(name):
    """Return a name without its last letter but one."""
    return name[:-2] + name[-1]


@for_each(lambda: sorted(registered()))
def test_every_registered_class_suggests_its_arguments(name):
    target = registered()[name]
    known = argument_names(target)
    if known is None:
        # CheckpointHook passes unknown arguments to the function that saves.
        assert name == 'AtomicCheckpointHook'
        return
    tried = 0
    for argument in known:
        wrong = misspell(argument)
        # 'lr' is too short to be recognized by one letter.
        if difflib.get_close_matches(wrong, known, n=1) != [argument]:
            continue
        tried += 1
        with pytest.raises(TypeError) as error:
            target(**{wrong: 1})
        message = str(error.value)
        assert f'has no argument {wrong!r}' in message
        assert message.endswith(f"Did you mean '{argument}'?")
    assert tried >= len(known) / 2


def test_arguments_of_base_classes_are_known():
    assert argument_names(AGVMAmpOptimWrapper) == {
        # AGVMOptimWrapper
        'modules',
        'anchor',
        'momentum',
        'ratio_bounds',
        'clip_window',
        # MMEngine's AmpOptimWrapper
        'loss_scale',
        'dtype',
        'use_fsdp',
        # MMEngine's OptimWrapper
        'optimizer',
        'accumulative_counts',
        'clip_grad',
    }


@pytest.mark.parametrize(
    'wrong, right',
    [
        ('momentun', 'momentum'),
        ('module', 'modules'),
        ('parawise_cfg', 'paramwise_cfg'),
    ],
)
def test_unknown_argument_in_config_suggests_nearest_name(wrong, right):
    with pytest.raises(TypeError, match=f"has no argument '{wrong}'.*mean '{right}'"):
        registry.OPTIM_WRAPPERS.build({'type': 'AGVMOptimWrapper', wrong: 0.9})


@pytest.mark.parametrize('argument', ['loss_scale', 'dtype', 'use_fsdp'])
def test_argument_of_mixed_precision_names_the_wrapper_for_it(argument):
    message = f"has no argument '{argument}'.*mixed precision.*'AGVMAmpOptimWrapper'"
    with pytest.raises(TypeError, match=message):
        registry.OPTIM_WRAPPERS.build({'type': 'AGVMOptimWrapper', argument: 'dynamic'})


def test_subclass_may_add_arguments():
    @suggests_arguments()
    class Base:
        def __init__(self, *, width):
            self.width = width

    class Wider(Base):
        def __init__(self, *, margin, **kwargs):
            super().__init__(**kwargs)
            self.margin = margin

    wider = Wider(width=1, margin=2)
    assert (wider.width, wider.margin) == (1, 2)
    with pytest.raises(TypeError, match="it has: margin, width. Did you mean 'width'"):
        Wider(widht=1, margin=2)
    with pytest.raises(TypeError, match='it has: margin, width.$'):
        Wider(color=1, margin=2)


def test_class_that_accepts_any_argument_is_refused():
    with pytest.raises(TypeError, match='dict accepts any argument'):
        suggests_arguments()(type('dict', (), dict(__init__=lambda self, **_: None)))


def test_decorated_function_keeps_its_name_and_result():
    @suggests_arguments('kind')
    def build(size, *, color='red'):
        """Build."""
        return size, color

    assert build(1, color='blue') == (1, 'blue')
    assert (build.__name__, build.__doc__) == ('build', 'Build.')
    with pytest.raises(TypeError, match="build has no argument 'colour'.*'color'"):
        build(1, colour='blue')
    with pytest.raises(TypeError, match="it has: color, size. Did you mean 'kind'"):
        build(1, kin=3)
