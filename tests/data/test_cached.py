"""Images held in memory: the same distribution as timm's transforms, pixel for pixel where the draw is the same."""
from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from timm.data import create_transform
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from gradmix_timm.data import batch_augment
from gradmix_timm.data.batch_augment import BatchAugment, draw_crops, resample
from gradmix_timm.data.cached import CachedLoader, EpochOrder, HeldImages, hold_images

CPU = torch.device('cpu')


def photos(count=12, size=(24, 32), channels=3):
    """Smooth pictures with a little noise, uint8 [B, C, H, W]."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, channels, 5, 6, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, size, mode='bicubic')
    return (fine * 255 + 8 * torch.randn(fine.shape, generator=generator)).clamp(0, 255).to(torch.uint8)


def pil(image):
    array = image.permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(array if array.shape[2] == 3 else array[..., 0])


def back(image):
    return F.pil_to_tensor(image).float()


class Rows(Dataset):
    transform = None

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image = self.images[index]
        return self.transform(image) if self.transform else image, index


# ---- each step against PIL

@pytest.mark.parametrize('table', [True, False])
@pytest.mark.parametrize('ratio', [(0.5, 2.0), (40.0, 50.0)])
def test_a_crop_has_a_pixel_at_least(ratio, table, monkeypatch):
    if not table:
        monkeypatch.setattr(batch_augment, '_TABLE_BYTES', 0)
    images = photos(64, (8, 8)).clamp(1)
    augment = BatchAugment((6, 6), scale=(1e-3, 2e-3), ratio=ratio, color_jitter=0.0, interpolation='bilinear')
    draw = augment.draw(np.random.default_rng(0), 64, (8, 8))
    assert draw.box[:, 2:].min() == 1
    assert augment.apply(images, draw).min() >= 1, 'no NaN either'


@pytest.mark.parametrize('table', [True, False])
@pytest.mark.parametrize('cubic', [False, True])
@pytest.mark.parametrize('size', [(24, 32), (40, 20), (9, 50)])
def test_a_resized_crop_is_pils(cubic, size, table, monkeypatch):
    if not table:
        monkeypatch.setattr(batch_augment, '_TABLE_BYTES', 0)
    images = photos()
    rng = np.random.default_rng(0)
    box = draw_crops(rng, len(images), (24, 32), (0.08, 1.0), (0.5, 2.0))
    flip = rng.random((len(images), 2)) < 0.5
    got = resample(images, box, size, np.full(len(images), cubic), flip)
    mode = InterpolationMode.BICUBIC if cubic else InterpolationMode.BILINEAR
    for row, (image, place) in enumerate(zip(images, box.tolist(), strict=True)):
        want = back(F.resized_crop(pil(image), *place, list(size), mode))
        want = want.flip([side + 1 for side in (0, 1) if flip[row, side]])
        off = (got[row] - want).abs()
        assert off.max() <= 1
        assert off.mean() < 0.3


@pytest.mark.parametrize('channels', [1, 3])
def test_colour_jitter_is_torchvisions_in_each_order(channels):
    images = photos(24, channels=channels)
    augment = BatchAugment((24, 32), padding=0, hflip=0.0, color_jitter=0.6)
    draw = augment.draw(np.random.default_rng(1), len(images), (24, 32))
    got = augment.apply(images, draw)
    steps = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)
    for row, image in enumerate(images):
        want = pil(image)
        for kind in draw.order[row]:
            want = steps[kind](want, float(draw.factor[row, kind]))
        off = (got[row] - back(want)).abs()
        assert off.max() <= 3
        assert off.mean() < 0.02
    assert len({tuple(order) for order in draw.order.tolist()}) == 6


def test_a_padded_crop_is_torchvisions():
    images, fill = photos(16), (10, 200, 77)
    augment = BatchAugment((24, 32), padding=4, vflip=0.5, color_jitter=0.0, fill=fill)
    draw = augment.draw(np.random.default_rng(2), 16, (24, 32))
    got = augment.apply(images, draw)
    for row, (image, place) in enumerate(zip(images, draw.box.tolist(), strict=True)):
        want = back(F.crop(F.pad(pil(image), [4], fill), *place))
        want = want.flip([side + 1 for side in (0, 1) if draw.flip[row, side]])
        assert torch.equal(got[row], want)
    assert draw.box[:, :2].min() == 0
    assert draw.box[:, :2].max() == 8


def test_grey_is_pils_and_as_frequent_as_asked():
    images = photos(200)
    augment = BatchAugment((24, 32), padding=0, hflip=0.0, color_jitter=0.0, grayscale_prob=0.3)
    draw = augment.draw(np.random.default_rng(3), 200, (24, 32))
    got = augment.apply(images, draw)
    grey = (got[:, 0] == got[:, 1]).flatten(1).all(1)
    assert np.array_equal(grey.numpy(), draw.grey)
    assert 0.2 < draw.grey.mean() < 0.4
    first = int(grey.nonzero()[0])
    assert (got[first] - back(F.rgb_to_grayscale(pil(images[first]), 3))).abs().max() <= 1


# ---- draws against timm's

@pytest.mark.parametrize(('size', 'scale', 'ratio'), [
    ((32, 32), (0.08, 1.0), (3 / 4, 4 / 3)), ((32, 96), (0.5, 1.0), (0.8, 1.25)), ((40, 30), (0.9, 1.0), (1.0, 1.0))])
def test_crops_are_distributed_as_timms(size, scale, ratio):
    random.seed(0)
    blank = Image.new('L', (size[1], size[0]))
    theirs = np.array([RandomResizedCropAndInterpolation.get_params(blank, scale, ratio) for _ in range(3000)])
    ours = draw_crops(np.random.default_rng(0), 3000, size, scale, ratio)
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, :2] + ours[:, 2:] <= size).all()
    for column in range(4):
        assert ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-3
    assert ks_2samp(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3]).pvalue > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize('options', [
    {}, {'scale': (0.6, 1.0), 'hflip': 0.2, 'vflip': 0.3, 'color_jitter': 0.8},
    {'color_jitter_prob': 0.4, 'grayscale_prob': 0.3, 'interpolation': 'bilinear'}])
def test_whole_images_are_distributed_as_timms(options):
    """Statistics of many augmented copies of one picture: mean, spread, colourfulness, left against right."""
    picture = photos(1, (32, 32))
    options = {'interpolation': 'random', **options}
    timms = create_transform((3, 32, 32), is_training=True, use_prefetcher=True, **options)
    random.seed(0)
    torch.manual_seed(0)
    theirs = torch.stack([timms(pil(picture[0])) for _ in range(1200)]).float()
    augment = BatchAugment((32, 32), **options)
    copies = picture.expand(1200, -1, -1, -1)
    ours = augment.apply(copies, augment.draw(np.random.default_rng(0), 1200, (32, 32)))
    for statistic in (lambda x: x.mean((1, 2, 3)), lambda x: x.std((1, 2, 3)),
                      lambda x: (x[:, 0] - x[:, 2]).abs().mean((1, 2)),
                      lambda x: x[..., :16].mean((1, 2, 3)) - x[..., 16:].mean((1, 2, 3)),
                      lambda x: x[:, :, :16].mean((1, 2, 3)) - x[:, :, 16:].mean((1, 2, 3))):
        assert ks_2samp(statistic(ours).numpy(), statistic(theirs).numpy()).pvalue > 1e-3


# ---- what is held, and in which order

@pytest.mark.parametrize('workers', [0, 2])
def test_held_images_are_the_data_sets(workers):
    images = photos(600)
    data = Rows([pil(image) for image in images])
    data.transform = mark = object()
    before = torch.get_rng_state()
    held = hold_images(data, workers)
    assert torch.equal(torch.get_rng_state(), before)
    assert data.transform is mark
    assert held.targets.tolist() == list(range(600))
    assert all(torch.equal(held[n][0], images[n]) for n in range(600))
    assert held.image_size == (24, 32)


def test_transformed_images_are_held_as_timms_evaluation_sees_them():
    data = Rows([pil(image) for image in photos(5, (40, 50))])
    data.transform = create_transform((3, 24, 24), is_training=False, use_prefetcher=True)
    want = [data[n][0] for n in range(5)]
    held = hold_images(data, transformed=True)
    assert all(torch.equal(held[n][0], want[n]) for n in range(5))


def test_images_of_two_sizes_are_refused_with_both():
    for split in (3, 300):
        data = Rows([Image.new('RGB', (20 if n < split else 22, 18)) for n in range(400)])
        with pytest.raises(ValueError, match='18 x 20 and 18 x 22'):
            hold_images(data)


def test_more_than_half_the_memory_is_refused(monkeypatch):
    monkeypatch.setattr('os.sysconf', lambda name: 100)
    with pytest.raises(ValueError, match='half of the'):
        hold_images(Rows([Image.new('RGB', (50, 50))]))


def test_order_is_a_shuffle_of_seed_and_epoch_shared_without_overlap():
    orders = [EpochOrder(103, 7, rank, 4) for rank in range(4)]
    for order in orders:
        order.set_epoch(3)
    parts = [set(order.indices().tolist()) for order in orders]
    assert {len(part) for part in parts} == {25}
    assert len(set.union(*parts)) == 100
    again, other = EpochOrder(103, 7, 1, 4), EpochOrder(103, 8, 1, 4)
    assert not np.array_equal(again.indices(), orders[1].indices())
    again.set_epoch(3)
    other.set_epoch(3)
    assert np.array_equal(again.indices(), orders[1].indices())
    assert not np.array_equal(other.indices(), orders[1].indices())


def loader(images, size=(24, 32), **options):
    options = {'augment': BatchAugment(size, color_jitter=0.2), 'batch_size': 4, 'mean': (0.5,) * 3, 'std': (0.25,) * 3,
               'device': CPU, **options}
    held = HeldImages(images.transpose(1, 2).contiguous(), torch.arange(len(images)))
    return CachedLoader(held, **options)


def epoch(made, number=0):
    made.sampler.set_epoch(number)
    return torch.cat([batch for batch, _ in made]), torch.cat([labels for _, labels in made])


def test_batches_are_a_function_of_seed_epoch_and_rank():
    images = photos(30)
    first, labels = epoch(loader(images))
    assert len(first) == 28
    assert len(set(labels.tolist())) == 28
    torch.rand(3)
    np.random.rand(3)  # noqa: NPY002
    again, same = epoch(loader(images))
    assert torch.equal(first, again)
    assert torch.equal(labels, same)
    for other in (epoch(loader(images), 1), epoch(loader(images, seed=1))):
        assert not torch.equal(labels, other[1])
    ranks = [epoch(loader(images, rank=rank, world=2)) for rank in range(2)]
    assert not set(ranks[0][1].tolist()) & set(ranks[1][1].tolist())


def test_without_augmentation_batches_are_the_normalised_images():
    images = photos(9)
    plain = BatchAugment((24, 32), padding=0, hflip=0.0, color_jitter=0.0)
    batch, labels = epoch(loader(images, augment=plain))
    assert torch.allclose(batch, (images[labels].float() / 255 - 0.5) / 0.25, atol=1e-5)
    assert batch.is_contiguous()


def test_images_of_a_batch_are_drawn_apart():
    same = photos(1, (32, 32)).expand(300, -1, -1, -1)
    batch, _ = epoch(loader(same, (32, 32), batch_size=300))
    assert len(batch.flatten(1).unique(dim=0)) == 300


def test_threads_are_as_they_were_while_a_batch_is_used_and_after():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert {torch.get_num_threads() for _ in loader(photos(8))} == {2}
        broken = loader(photos(8), augment=None)
        broken.augment = BatchAugment((24, 32), interpolation='nearest')
        with pytest.raises(KeyError):
            next(iter(broken))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
