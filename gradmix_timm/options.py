"""GradMix's options, in a file without PyTorch, so that flags and ``--help`` can be made of them."""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from numbers import Real
from typing import Any

from gradmix_timm.registry import nearest

__all__ = ['OPTIONS', 'RECIPES', 'GradMixOptions', 'check_alpha', 'is_pair']


def check_alpha(alpha: float, name: str = 'alpha') -> float:
    """The parameter of a Beta distribution, as a float.

    Raises:
        ValueError: Not above 0, or not finite.
    """
    if not (alpha > 0 and math.isfinite(alpha)):
        raise ValueError(f'{name} of the Beta distribution is a finite number above 0, got {alpha}')
    return float(alpha)


def is_pair(value: Any) -> bool:
    """Whether a value is a list or tuple of two numbers."""
    return isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(number, Real) for number in value)


def _option(default: Any, text: str, choices: Sequence[str] | None = None, trained: Any = None) -> Any:
    return field(default=default, metadata={'help': text, 'choices': choices, 'trained': trained})


@dataclass(frozen=True)
class GradMixOptions:
    """The options of GradMix: constructor keyword, ``--gradmix-NAME`` flag, YAML key and report column alike."""

    recipe: str = _option('default', "'authors' sets every option as a run of the authors' code does, with the layers "
                          '-2,-1 (their default is one layer); explicit options override', ('default', 'authors'))
    attribution: str = _option('layercam', 'how the map is made; random and center are controls without a model',
                               ('layercam', 'hirescam', 'gradcam', 'input-gradient', 'random', 'center'))
    score: Any = _option('evidence', "differentiated: the label's log-odds, its logit, or +cross-entropy",
                         ('evidence', 'logit', 'loss'))
    sign: str = _option('high', "box at the map's maximum (high) or minimum (low)", ('high', 'low'))
    layers: Any = _option(None, 'target layers: module names, or numbers (-1 the deepest usable); several are fused. '
                          'The default lies early in a ResNet on 32 px images: try -2 there')
    fill: str = _option('donor', 'what fills the box; noise and mean keep the label',
                        ('donor', 'donor-resized', 'noise', 'mean'))
    center: str = _option('window', 'where the box hides most of the map, at its maximum, or drawn from it; random is '
                          'a control that chooses images and labels by the map, and the place at random',
                          ('window', 'argmax', 'sample', 'random'))
    placement: str = _option('clip', 'a box over the border is cut (as CutMix) or pushed inside', ('clip', 'shift'))
    label: str | None = _option(None, 'label weights by pixel area, by attribution mass, or the own label kept '
                         '(default: keep with a confidence, area without)', ('area', 'mass', 'keep'))
    lam: str = _option('image', 'one draw of the box size per image or per batch', ('image', 'batch'))
    alpha: float = _option(1.0, 'kept share = lo + (hi - lo) * Beta(alpha, alpha)')
    lam_range: tuple[float, float] = _option((0.6, 0.95), 'lo and hi of the kept share; 0 1 draws boxes of any size')
    confidence: float = _option(0.0, 'mix only images whose label the model gives at least this probability (with '
                                'smoothing a share of what the label asks for), so that what is covered has been '
                                'learned; 0: every image', trained=0.9)
    correct_lam: bool = _option(True, 'lam from the clipped box rather than the drawn one')
    attr_scale: float = _option(1.0, 'side of the copy on which the attribution is made, relative to the image')
    keep_clean: bool = _option(False, 'train on the clean batch too; its forward serves the attribution')

    def __post_init__(self) -> None:
        if self.label is None:
            object.__setattr__(self, 'label', 'keep' if self.confidence else 'area')
        for option in fields(self):
            choices, value = option.metadata['choices'], getattr(self, option.name)
            if choices and value not in choices and not (option.name == 'score' and callable(value)):
                raise ValueError(f'{option.name}={value!r}: {nearest(str(value), choices)}')
            if isinstance(option.default, bool) and not isinstance(value, bool):
                raise ValueError(f'{option.name} is True or False, got {value!r}')
        pair = self.lam_range
        if not is_pair(pair) or not 0 <= pair[0] < pair[1] <= 1:
            raise ValueError(f'lam_range is (lo, hi) with 0 <= lo < hi <= 1, got {self.lam_range}')
        check_alpha(self.alpha)
        for name, valid, expected in (
                ('attr_scale', 0 < self.attr_scale <= 1, 'in (0, 1]'),
                ('confidence', 0 <= self.confidence < 1, 'a probability, in [0, 1)')):
            if not valid:
                raise ValueError(f'{name} is {expected}, got {getattr(self, name)}')


#: Option name to its dataclass field; ``metadata`` holds help, choices and, where it is another, the default of
#: ``train.py --mixup-mode gradmix``, chosen by measurements (docs/results/study.md).
OPTIONS = {option.name: option for option in fields(GradMixOptions)}

#: Settings of the authors' code that differ from our defaults. Their scripts default to one layer (the
#: third or the last stage, by date); others of their runs fuse (-2, -1). Not adopted: without AMP the line
#: that adds their mixed term to the loss is commented out; their attribution leaves gradients in ``.grad``; and its
#: extra forward in training mode updates BatchNorm's statistics a second time per step.
RECIPES: dict[str, dict[str, Any]] = {
    'default': {},
    'authors': {'score': 'loss', 'layers': (-2, -1), 'fill': 'noise', 'center': 'argmax', 'label': 'keep',
                'lam': 'batch', 'lam_range': (0.5, 0.9), 'correct_lam': False},
}
