"""Embeddings of three small nets, and what OpenOOD's postprocessors and evaluator say of them, kept as data for a test.

    python benchmarks/openood_reference.py nets
    python benchmarks/openood_reference.py openood --openood CLONE
    python benchmarks/openood_reference.py odin --openood CLONE

The first trains three of timm's test nets on six classes of scikit-learn's digits (a minute each) and writes their
embeddings to ``tests/openset/data/nets.npz``: train, held-out, known test and unknown test (the other four classes).
The second hands these embeddings to the postprocessors of a clone of https://github.com/Jingkang50/OpenOOD, in a
stand-in for its network that answers with stored features, and writes their confidences to
``tests/openset/data/openood.npz``, figures of its evaluator included. It needs faiss-cpu and libmr (what cannot be
imported is left out and named). The third runs its ODIN, which goes back to images, on a small net of random weights
and writes net, images and confidences to ``tests/openset/data/odin.npz``.
"""
from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

DATA = Path(__file__).parent.parent / 'tests' / 'openset' / 'data'
NETS = ('test_resnet', 'test_convnext', 'test_vit')
KNOWN = 6


def digits() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Images [N, 1, 32, 32] and labels of each part; -1 for the four unknown classes."""
    from sklearn.datasets import load_digits

    images, label = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(label))
    pixels = F.interpolate(torch.from_numpy(images[order]).float().view(-1, 1, 8, 8) / 8 - 1, size=32, mode='bilinear')
    label = torch.from_numpy(label[order])
    known, unknown = (label < KNOWN).nonzero()[:, 0], (label >= KNOWN).nonzero()[:250, 0]
    cuts = {'train': known[:650], 'validation': known[650:758], 'known': known[758:1008], 'unknown': unknown}
    return {part: (pixels[rows], label[rows].where(label[rows] < KNOWN, -1)) for part, rows in cuts.items()}


def train(name: str, images: torch.Tensor, label: torch.Tensor) -> nn.Module:
    """A net after a few epochs, still unsure of some images."""
    import timm

    torch.manual_seed(0)
    size = {'img_size': 32} if 'vit' in name else {}
    model = timm.create_model(name, num_classes=KNOWN, in_chans=1, **size)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.05)
    for _ in range(8):
        for rows in torch.randperm(len(label)).split(32):
            noisy = images[rows] + 0.3 * torch.randn_like(images[rows])
            optimizer.zero_grad()
            F.cross_entropy(model(noisy), label[rows]).backward()
            optimizer.step()
    return model.eval()


def make_nets() -> None:
    """Train, embed, write; logits follow from the head.

    In float32: rounding to fewer digits would give variance to the direction that a LayerNorm leaves none, and 1 / this
    variance is a weight of the distances.
    """
    parts, kept = digits(), {}
    for name in NETS:
        model = train(name, *parts['train'])
        head = model.get_classifier()
        kept |= {f'{name}/weight': head.weight.detach().numpy(), f'{name}/bias': head.bias.detach().numpy()}
        for part, (images, label) in parts.items():
            with torch.no_grad():
                features = model.forward_head(model.forward_features(images), pre_logits=True)
            kept[f'{name}/{part}'] = features.numpy()
            kept[f'label/{part}'] = label.numpy().astype(np.int8)
            answer = head(features).argmax(1)
            print(name, part, list(features.shape), 'least', float(features.min()),
                  'right', float((answer == label).float().mean()))
    DATA.mkdir(exist_ok=True)
    np.savez_compressed(DATA / 'nets.npz', **kept)


# Postprocessor to (module, class, arguments); arguments as in its own configs/postprocessors/NAME.yml.
POSTPROCESSORS: dict[str, tuple[str, str, dict[str, Any]]] = {
    'msp': ('base', 'BasePostprocessor', {}), 'mls': ('maxlogit', 'MaxLogitPostprocessor', {}),
    'ebo': ('ebo', 'EBOPostprocessor', {'temperature': 1}), 'gen': ('gen', 'GENPostprocessor', {'gamma': .1, 'M': 100}),
    'knn': ('knn', 'KNNPostprocessor', {'K': 50}), 'mds': ('mds', 'MDSPostprocessor', {}),
    'rmds': ('rmds', 'RMDSPostprocessor', {}), 'vim': ('vim', 'VIMPostprocessor', {'dim': 32}),
    'openmax': ('openmax', 'OpenMax', {}), 'react': ('react', 'ReactPostprocessor', {'percentile': 90}),
    'ash': ('ash', 'ASHPostprocessor', {'percentile': 90}),
    'scale': ('scale', 'ScalePostprocessor', {'percentile': 85}),
    'dice': ('dice', 'DICEPostprocessor', {'p': 90}), 'klm': ('kl_matching', 'KLMatchingPostprocessor', {}),
    'she': ('she', 'SHEPostprocessor', {'metric': 'inner_product'}),
    'nnguide': ('nnguide', 'NNGuidePostprocessor', {'K': 100, 'alpha': 1.}),
    'fdbd': ('fdbd', 'fDBDPostprocessor', {'distance_as_normalizer': True}),
    'nci': ('nci', 'NCIPostprocessor', {'alpha': 0.0001}), 'gradnorm': ('gradnorm', 'GradNormPostprocessor', {}),
    'residual': ('residual', 'ResidualPostprocessor', {'dim': 32}),
    'relation': ('relation', 'RelationPostprocessor', {'pow': 1}),
    'vra': ('vra', 'VRAPostprocessor', {'percentile_high': 90, 'percentile_low': 10}),
    'temp_scaling': ('temp_scaling', 'TemperatureScalingPostprocessor', {})}


class StandIn(nn.Module):
    """For OpenOOD's network: its "images" are features."""

    def __init__(self, weight: np.ndarray, bias: np.ndarray, shaping: str, clone: Path) -> None:
        super().__init__()
        self.fc = nn.Linear(weight.shape[1], len(weight))
        self.fc.load_state_dict({'weight': torch.from_numpy(weight), 'bias': torch.from_numpy(bias)})
        self.shape = None
        if shaping in ('ash', 'scale'):  # these two live in its networks
            module = _module(clone, f'openood.networks.{shaping}_net')
            self.shape = module.ash_b if shaping == 'ash' else module.scale

    def forward(self, x: torch.Tensor, return_feature: bool = False) -> Any:
        return (self.fc(x), x.clone()) if return_feature else self.fc(x)

    def forward_threshold(self, x: torch.Tensor, threshold: float) -> torch.Tensor:
        if self.shape is None:
            return self.fc(x.clip(max=threshold))
        return self.fc(self.shape(x.clone()[..., None, None], threshold).flatten(1))

    def get_fc(self) -> tuple[np.ndarray, np.ndarray]:
        return self.fc.weight.detach().numpy(), self.fc.bias.detach().numpy()


def _module(clone: Path, name: str) -> types.ModuleType:
    """One file of the clone, without the packages above it (they import every network and data set)."""
    for package in ('openood', 'openood.networks', 'openood.postprocessors', 'openood.evaluators',
                    'openood.preprocessors', 'openood.utils'):
        if package not in sys.modules:
            sys.modules[package] = types.ModuleType(package)
            sys.modules[package].__path__ = [str(clone.joinpath(*package.split('.')))]
    return importlib.import_module(name)


class Loader(list):
    """Batches that say their size; OpenMax asks an iterator for its length."""

    batch_size = 128

    def __iter__(self) -> Any:
        return _Batches(list(super().__iter__()))

    @property
    def dataset(self) -> range:
        return range(sum(len(batch['label']) for batch in self))


class _Batches:
    def __init__(self, batches: list[dict[str, torch.Tensor]]) -> None:
        self.batches, self.count = iter(batches), len(batches)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> dict[str, torch.Tensor]:
        return next(self.batches)


def _loader(features: np.ndarray, label: np.ndarray) -> Loader:
    rows, target = torch.from_numpy(features.astype(np.float32)), torch.from_numpy(label.astype(np.int64))
    return Loader({'data': a, 'label': b} for a, b in zip(rows.split(128), target.split(128), strict=True))


def run_openood(clone: Path) -> None:
    """Every postprocessor on every net, and the evaluator's figures."""
    torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign,assignment]
    nn.Module.cuda = lambda self, *_, **__: self  # type: ignore[method-assign,assignment]
    real_ones = torch.ones
    torch.ones = lambda *a, device=None, **k: real_ones(*a, **k)  # type: ignore[assignment]
    nets, kept = np.load(DATA / 'nets.npz'), {}
    _module(clone, 'openood.postprocessors.info').num_classes_dict['digits'] = KNOWN
    metrics = _module(clone, 'openood.evaluators.metrics')
    for name, (module, kind, arguments) in POSTPROCESSORS.items():
        try:
            made = getattr(_module(clone, f'openood.postprocessors.{module}_postprocessor'), kind)
        except ImportError as error:
            print(f'left out: {name}: {error}')
            continue
        for net in NETS:
            settings = types.SimpleNamespace(
                dataset=types.SimpleNamespace(name='digits'), postprocessor=types.SimpleNamespace(
                    postprocessor_args=types.SimpleNamespace(**arguments), postprocessor_sweep=None))
            standin = StandIn(nets[f'{net}/weight'], nets[f'{net}/bias'], name, clone)
            loaders = {part: _loader(nets[f'{net}/{own}'], nets[f'label/{own}']) for part, own in (
                ('train', 'train'), ('val', 'validation'), ('test', 'known'), ('unknown', 'unknown'))}
            postprocessor = made(settings)
            postprocessor.setup(standin, loaders, {})
            sides = []
            for part in ('test', 'unknown'):
                found = [postprocessor.postprocess(standin, batch['data']) for batch in loaders[part]]
                sides.append([torch.cat([torch.as_tensor(pair[i]).detach() for pair in found]).numpy().ravel()
                              for i in (0, 1)])
            (known_pred, known), (unknown_pred, unknown) = sides
            label = np.r_[nets['label/known'].astype(int), nets['label/unknown'].astype(int)]
            conf, pred = np.r_[known, unknown], np.r_[known_pred, unknown_pred]
            figures = metrics.compute_all_metrics(conf, label, pred)
            kept[f'{net}/{name}/metrics'] = np.array([*figures, *(
                metrics.ccr_fpr(conf, fpr, pred, label) for fpr in (.01, .1))])
            kept[f'{net}/{name}/known'], kept[f'{net}/{name}/unknown'] = known, unknown
            print(net, name, np.round(kept[f'{net}/{name}/metrics'], 4))
    kept['commit'] = np.array(subprocess.run(['git', '-C', clone, 'rev-parse', 'HEAD'], capture_output=True, text=True,
                                             check=True).stdout.strip())
    np.savez_compressed(DATA / 'openood.npz', **kept)


def odin_net(classes: int = 4) -> nn.Sequential:
    """Two convolutions and a head; one that answers differently for different images."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3, stride=2), nn.ReLU(), nn.Flatten(),
                        nn.Linear(54, classes))
    net[-1].weight.data.mul_(20)
    return net.eval()


def run_odin(clone: Path) -> None:
    """ODIN at two settings, with the standard deviations of CIFAR-10."""
    images = torch.rand(80, 3, 10, 10, generator=torch.Generator().manual_seed(0)) * 4 - 2
    net = odin_net()
    made = _module(clone, 'openood.postprocessors.odin_postprocessor').ODINPostprocessor
    kept = {'images': images.numpy(), 'std': np.array([0.2470, 0.2435, 0.2616], np.float32)}
    kept |= {f'net/{name}': value.numpy() for name, value in net.state_dict().items()}
    for temperature, noise in ((1000, .0014), (10, .01)):
        settings = types.SimpleNamespace(
            dataset=types.SimpleNamespace(name='cifar10'), postprocessor=types.SimpleNamespace(
                postprocessor_args=types.SimpleNamespace(temperature=temperature, noise=noise),
                postprocessor_sweep=None))
        answer, confidence = made(settings).postprocess(net, images.clone())
        kept[f'{temperature}/{noise}'] = confidence.numpy()
        print(temperature, noise, 'answers', answer.bincount().tolist(), 'confidences', confidence.aminmax())
    np.savez_compressed(DATA / 'odin.npz', **kept)


def main() -> None:
    """As the head of the file says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', choices=['nets', 'openood', 'odin'])
    parser.add_argument('--openood', type=Path, metavar='CLONE')
    args = parser.parse_args()
    if args.what == 'nets':
        make_nets()
    elif args.what == 'odin':
        run_odin(args.openood)
    else:
        run_openood(args.openood)


if __name__ == '__main__':
    main()
