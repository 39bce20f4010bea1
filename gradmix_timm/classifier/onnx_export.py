"""One ONNX graph of normalisation, model, score and threshold."""
from __future__ import annotations

import copy
import json
import os
import warnings
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from gradmix_timm.checkpoint import atomic_path
from gradmix_timm.data.preprocessing import Preprocessing
from gradmix_timm.openset.scores import SCORES, Score
from gradmix_timm.openset.scores.logit import LogitScore

__all__ = ['Graph', 'export']


class Graph(nn.Module):
    """Pixels from 0 to 1 to (label, knownness, accepted).

    Args:
        model: Gives logits.
        score: A function of the logits.
        mean: Of the channels.
        std: Of the channels.
        threshold: Of knownness.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, score: LogitScore, mean: tuple[float, ...], std: tuple[float, ...],
                 threshold: float) -> None:
        super().__init__()
        self.model, self.score, self.threshold = model, score, threshold
        self.register_buffer('mean', torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer('std', torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of float32 [N, C, H, W]: int64 [N], float64 [N], bool [N]."""
        logits = self.model((images - self.mean) / self.std).float()
        knownness = self.score.of(logits.double())  # not chunk by chunk, which would fix the number of images
        return logits.argmax(1), knownness, knownness >= self.threshold


def export(path: str | os.PathLike[str], model: nn.Module, score: Score, manifest: Any) -> None:
    """Write the graph atomically.

    Raises:
        ValueError: A score that reads more than logits.
        ImportError: Without onnx and onnxscript.
    """
    if not isinstance(score, LogitScore):
        able = [name for name in SCORES.describe() if issubclass(SCORES[name], LogitScore)]
        raise ValueError(f'score {score.name!r} does not fit into a graph of the logits; those that do: '
                         f'{", ".join(able)}: OpenSetClassifier.from_checkpoint(..., score={able[0]!r})')
    missing = [name for name in ('onnx', 'onnxscript') if find_spec(name) is None]
    if missing:
        raise ImportError(f'{" and ".join(missing)} not installed; pip install gradmix-timm[onnx]')
    preprocessing = Preprocessing.of(manifest.data_config)
    frozen = copy.deepcopy(model).cpu().eval()
    net = Graph(frozen, score, preprocessing.mean, preprocessing.std, manifest.threshold).eval()
    example = torch.rand(2, *preprocessing.input_size)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of the exporter's own use of PyTorch
        program = torch.onnx.export(
            net, (example,), input_names=['images'], output_names=['label', 'knownness', 'accepted'], dynamo=True,
            dynamic_shapes={'images': {0: torch.export.Dim('n')}}, verbose=False)
    assert program is not None
    proto = program.model_proto
    for key, value in _metadata(score, manifest, preprocessing).items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value
    with atomic_path(path) as temporary:
        temporary.write_bytes(proto.SerializeToString())


def _metadata(score: Score, manifest: Any, preprocessing: Preprocessing) -> dict[str, str]:
    """Metadata for callers of the graph, as text."""
    facts = {
        'known_classes': list(manifest.known_classes), 'score': score.name, 'score_options': score.options,
        'threshold': manifest.threshold, 'threshold_source': manifest.threshold_source,
        'input': 'float32 [N, C, H, W], pixels from 0 to 1: what the steps of gradmix_timm.preprocessing make of an '
                 'image; normalised in the graph',
        'formulas': "H and W are the picture's sides before the step, / divides in float64, round goes to the even "
                    'number at halves, floor down',
        **preprocessing.onnx_metadata(), 'model': manifest.model}
    return {f'gradmix_timm.{key}': value if isinstance(value, str) else json.dumps(value)
            for key, value in facts.items()}
