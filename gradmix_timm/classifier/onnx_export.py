"""One ONNX graph of normalisation, model, score and threshold; of the preprocessing too where it reads images."""
from __future__ import annotations

import copy
import json
import os
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gradmix_timm.checkpoint import atomic_path, versions, write_atomic
from gradmix_timm.data.preprocessing import Preprocessing
from gradmix_timm.openset.scores import SCORES, Score
from gradmix_timm.openset.scores.logit import LogitScore

from .model_card import model_card
from .onnx_image import check_exportable, prepend

__all__ = ['INPUTS', 'Graph', 'export']

#: What a graph reads, and its description in the metadata.
INPUTS = {
    'tensor': 'float32 [N, C, H, W], pixels from 0 to 1: what the steps of gradmix_timm.preprocessing make of an '
              'image; normalised in the graph',
    'image': 'uint8 [H, W, 3], RGB, one image of any size, upright; the steps of gradmix_timm.preprocessing, orient '
             'apart, and normalisation are done in the graph'}
_OUTPUTS = {
    'label': 'int64 [N]: position in gradmix_timm.known_classes', 'knownness': 'float64 [N]: higher = more known',
    'accepted': 'bool [N]: knownness >= threshold; false: of no known class'}


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


def export(path: str | os.PathLike[str], model: nn.Module, score: Score, manifest: Any, input: str = 'tensor') -> None:
    """Write the graph and its model card, ``PATH.md``, each atomically.

    Args:
        path: Of the graph.
        model: In evaluation mode; takes float32 [N, C, H, W].
        score: Fitted, of logits.
        manifest: The classifier's, see :class:`~gradmix_timm.classifier.manifest.Manifest`.
        input: Of :data:`INPUTS`, see :meth:`~gradmix_timm.classifier.model.OpenSetClassifier.export_onnx`.

    Raises:
        ValueError: A score that is no LogitScore; another ``input`` than those of :data:`INPUTS`; a preprocessing
            that ONNX has no operators for.
        ImportError: Without onnx and onnxscript.
    """
    if input not in INPUTS:
        raise ValueError(f'input={input!r}: a graph reads {" or ".join(map(repr, INPUTS))}')
    if not isinstance(score, LogitScore):
        able = [name for name in SCORES.describe() if issubclass(SCORES[name], LogitScore)]
        own = tuple(score.reads) == ('logits',) and not score.needs_head
        how = ('it has to be a LogitScore (of gradmix_timm.openset.scores.logit): of(logits) from float64 [N, K] to '
               "[N] in torch's operations, in place of knownness(embeddings); those that are" if own else
               'it reads more than them; those that fit')
        raise ValueError(f'score {score.name!r} does not fit into a graph of the logits: {how}: {", ".join(able)}: '
                         f'OpenSetClassifier.from_checkpoint(..., score={able[0]!r}), or --score {able[0]}')
    preprocessing = Preprocessing.of(manifest.data_config)
    if input == 'image':
        check_exportable(preprocessing)
    missing = [name for name in ('onnx', 'onnxscript') if find_spec(name) is None]
    if missing:
        raise ImportError(f"{' and '.join(missing)} not installed: pip install 'gradmix-timm[onnx]'")
    if manifest.amp_dtype:
        warnings.warn(f'the graph computes in float32 and its threshold was set in {manifest.amp_dtype}: an image '
                      'close to it may fall on the other side; export a classifier that was made with amp_dtype=None',
                      stacklevel=3)
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
    if input == 'image':
        prepend(proto, preprocessing)
    for key, value in _metadata(score, manifest, preprocessing, input).items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value
    with atomic_path(path) as temporary:
        temporary.write_bytes(proto.SerializeToString())
    title = Path(path).name
    write_atomic(f'{os.fspath(path)}.md', model_card(title, manifest, score, _use(title, input, preprocessing)))


def _metadata(score: Score, manifest: Any, preprocessing: Preprocessing, input: str) -> dict[str, str]:
    """Metadata for callers of the graph, as text."""
    facts = {
        'known_classes': list(manifest.known_classes), 'score': score.name, 'score_options': score.options,
        'threshold': manifest.threshold, 'threshold_source': manifest.threshold_source,
        'threshold_precision': manifest.amp_dtype or 'float32', 'known_acceptance': manifest.known_acceptance,
        'input': INPUTS[input], 'outputs': _OUTPUTS,
        'formulas': "H and W are the picture's sides before the step, / divides in float64, round goes to the even "
                    'number at halves, floor down',
        **preprocessing.onnx_metadata(), 'model': manifest.model, 'checkpoint': manifest.checkpoint,
        'versions': versions()}
    return {f'gradmix_timm.{key}': value if isinstance(value, str) else json.dumps(value)
            for key, value in facts.items()}


def _use(name: str, input: str, preprocessing: Preprocessing) -> str:
    """The card's section on the use of the graph."""
    upright = 'ImageOps.exif_transpose(Image.open(path))' if preprocessing.exif == 'apply' else 'Image.open(path)'
    feed = {'image': f"np.asarray({upright}.convert('RGB'))",
            'tensor': 'pixels  # float32 [N, C, H, W]: facts["gradmix_timm.preprocessing"] lists the steps'}[input]
    modules = f'Image{", ImageOps" if preprocessing.exif == "apply" else ""}'
    outputs = '\n'.join(f'- `{key}`: {value}' for key, value in _OUTPUTS.items())
    return f"""```python
import json
import numpy as np
import onnxruntime
from PIL import {modules}

session = onnxruntime.InferenceSession({name!r})
facts = session.get_modelmeta().custom_metadata_map
names = json.loads(facts['gradmix_timm.known_classes'])
{"image" if input == "image" else "images"} = {feed}
label, knownness, accepted = session.run(None, {{{"'image': image" if input == "image" else "'images': images"}}})
print(names[label[0]] if accepted[0] else 'unknown', knownness[0])
```

- Input: {INPUTS[input]}.
{outputs}
"""
