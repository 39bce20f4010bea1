"""One pass gives the model's own logits and the classifier's own inputs; the classifier becomes one linear map."""
from __future__ import annotations

import logging

import pytest
import timm
import torch
from timm.layers import ClassifierHead, NormMlpClassifierHead
from torch import nn

from gradmix_timm.openset import extract as module
from gradmix_timm.openset.extract import extract, head_of
from gradmix_timm.openset.model_scores import score_images
from gradmix_timm.openset.scores import fit_score


def batches(count=10, size=3, side=64):
    """``count`` images in batches of ``size``, labels 0, 1, 2, 0, ..."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, side, side, generator=generator)
    labels = torch.arange(count) % 3
    return images, labels, list(zip(images.split(size), labels.split(size), strict=True))


def randomise(model):
    """Weights and BatchNorm statistics that leave nothing at zero or one."""
    torch.manual_seed(1)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(part.weight, 0.5, 1.5)
        elif isinstance(part, nn.Linear | nn.Conv2d):
            nn.init.normal_(part.weight, std=0.1)
            if part.bias is not None:
                nn.init.normal_(part.bias, std=0.1)
    return model


def linear_error(model, embeddings):
    head = head_of(model)
    return float((head(embeddings.features) - embeddings.logits).abs().max() / embeddings.logits.abs().max())


class TwoHeads(nn.Module):
    """Two classifiers on one feature or on two; answers with both, or with their mean."""

    def __init__(self, widths=(8, 8), shared=True, together=False):
        super().__init__()
        self.stem = nn.Conv2d(3, max(widths), 3)
        self.heads = nn.ModuleList(nn.Linear(width, 3) for width in widths)
        self.shared, self.together = shared, together

    def get_classifier(self):
        return tuple(self.heads)

    def forward(self, x):
        pooled = self.stem(x).mean((2, 3))
        parts = [pooled[:, :head.in_features] * (1 if self.shared else place + 1)
                 for place, head in enumerate(self.heads)]
        answers = [head(part) for head, part in zip(self.heads, parts, strict=True)]
        return tuple(answers) if self.together else sum(answers) / len(answers)


class Reading(nn.Module):
    """A backbone and the head that is given."""

    def __init__(self, head, pooled=True):
        super().__init__()
        self.stem, self.head, self.pooled = nn.Conv2d(3, 6, 3), head, pooled

    def get_classifier(self):
        return self.head

    def forward(self, x):
        x = self.stem(x)
        return self.head(x.mean((2, 3)) if self.pooled else x.mean((2, 3), keepdim=True)).flatten(1)


@pytest.mark.parametrize('name', ['test_resnet', 'test_vit', 'test_efficientnet', 'test_convnext', 'test_nfnet'])
def test_logits_are_the_models_own_and_features_timms(name):
    options = {'img_size': 64} if name == 'test_vit' else {}
    model = randomise(timm.create_model(name, num_classes=3, **options)).eval()
    images, labels, loader = batches()
    found = extract(model, loader, 'cpu')
    with torch.no_grad():
        # In the same batches: a convolution may round otherwise in others.
        assert torch.equal(found.logits, torch.cat([model(part) for part, _ in loader]))
        own = torch.cat([model.forward_head(model.forward_features(part), pre_logits=True) for part, _ in loader])
    assert torch.equal(found.features, own.flatten(1))
    assert found.features.shape[1] == model.head_hidden_size
    assert torch.equal(found.label, labels)
    assert found.index.tolist() == list(range(len(images)))
    assert linear_error(model, found) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'side'), [
    ('levit_128s', 224), ('efficientformer_l1', 224), ('mobilenetv3_small_050', 64), ('mobilenetv4_conv_small', 64),
    ('vgg11', 64), ('repvit_m0_9', 64), ('crossvit_tiny_240', 240), ('resnetv2_50x1_bit', 64),
    ('tiny_vit_5m_224', 224), ('sequencer2d_s', 224), ('efficientvim_m4_dist', 224), ('iformer_t', 224)])
def test_heads_of_timm_are_linear_maps_of_the_features(name, side):
    model = randomise(timm.create_model(name, num_classes=3))
    found = extract(model, batches(2, 2, side)[2], 'cpu')
    assert linear_error(model, found) < 1e-4


class PoolsInItsHead(nn.Module):
    """As Sequencer and SAM: the classifier is a module that pools a grid first."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 5, 3), ClassifierHead(5, 3)

    def get_classifier(self):
        return self.head

    def forward(self, images):
        return self.head(self.stem(images))


def test_a_head_that_pools_is_read_behind_its_pooling():
    model = randomise(PoolsInItsHead())
    images, _, loader = batches(6, 4, 12)
    found = extract(model, loader, 'cpu')
    torch.testing.assert_close(found.features, model.eval().stem(images).mean((2, 3)).detach())
    assert linear_error(model, found) < 1e-5


@pytest.mark.slow
def test_heads_that_read_different_tokens_are_not_one_map():
    model = randomise(timm.create_model('deit_tiny_distilled_patch16_224', num_classes=3))
    assert linear_error(model, extract(model, batches(2, 2, 224)[2], 'cpu')) > 0.02


@pytest.mark.parametrize('widths', [(8, 8), (8, 5), (4, 6, 8)])
@pytest.mark.parametrize('together', [False, True])
def test_several_heads_become_one(widths, together):
    model = TwoHeads(widths, together=together)
    found = extract(model, batches()[2], 'cpu')
    assert found.logits.shape == (10, 3)
    assert found.features.shape[1] == (8 if len(set(widths)) == 1 else sum(widths))
    assert linear_error(model, found) < 1e-5


def test_a_head_on_other_inputs_is_seen_through():
    model = TwoHeads(shared=False)
    assert linear_error(model, extract(model, batches()[2], 'cpu')) > 0.02


def test_a_norm_inside_the_head_is_folded_in():
    head = randomise(nn.Sequential(nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3)))
    model = Reading(head)
    assert linear_error(model, extract(model, batches()[2], 'cpu')) < 1e-5
    assert head.training  # measuring left it as it was


def test_a_convolution_as_head():
    model = Reading(nn.Conv2d(6, 3, 1, bias=False), pooled=False)
    found = extract(model, batches()[2], 'cpu')
    assert found.features.shape == (10, 6)
    assert linear_error(model, found) < 1e-5


def test_a_model_that_is_not_timms_is_read_at_its_last_linear_layer():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5), nn.ReLU(),
                          nn.Linear(5, 3))
    images, _, loader = batches()
    found = extract(model, loader, 'cpu')
    with torch.no_grad():
        torch.testing.assert_close(found.features, model[:5](images))
    assert linear_error(model, found) < 1e-5


@pytest.mark.parametrize('head', [
    nn.Sequential(nn.Linear(6, 4), nn.GELU(), nn.Linear(4, 3)), NormMlpClassifierHead(6, 3, hidden_size=4)])
def test_a_head_that_is_no_linear_map_is_refused(head):
    if isinstance(head, NormMlpClassifierHead):
        head = nn.Sequential(nn.Unflatten(1, (6, 1, 1)), head)
    with pytest.raises(ValueError, match=r'no linear layer; scores that need no head remain'):
        head_of(Reading(head))


def test_a_model_without_a_head_says_what_remains():
    model = timm.create_model('test_resnet', num_classes=0)
    assert extract(model, batches()[2], 'cpu').features.shape == (10, model.num_features)
    with pytest.raises(ValueError, match=r'no classification head.*remain'):
        head_of(model)


def test_a_model_without_any_linear_layer_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ValueError, match='give it a get_classifier'):
        extract(model, batches()[2], 'cpu')


def test_features_that_are_not_pooled_are_refused():
    model = nn.Sequential(nn.Flatten(2), nn.Linear(64 * 64, 3))
    with pytest.raises(ValueError, match=r'pooled features \[B, D\]'):
        extract(nn.Sequential(model, nn.Flatten(1), nn.Identity()), batches()[2], 'cpu')


def test_nothing_is_left_behind_even_on_an_error(tiny_cnn):
    tiny_cnn.layer1.eval()
    flags = [part.training for part in tiny_cnn.modules()]
    state = {name: value.clone() for name, value in tiny_cnn.state_dict().items()}
    loader = batches()[2]
    extract(tiny_cnn, loader, 'cpu')
    with torch.no_grad():
        tiny_cnn.fc.bias[0] = float('nan')
    with pytest.raises(ValueError, match='NaN'):
        extract(tiny_cnn, loader, 'cpu')
    assert [part.training for part in tiny_cnn.modules()] == flags
    assert not any(part._forward_pre_hooks for part in tiny_cnn.modules())
    changed = [name for name, value in tiny_cnn.state_dict().items() if not torch.equal(value, state[name])]
    assert changed == ['fc.bias']


def test_nan_is_named_by_image(tiny_cnn):
    images, labels, _ = batches(10)
    images[7] = float('nan')
    loader = list(zip(images.split(4), labels.split(4), strict=True))
    with pytest.raises(ValueError, match=r'NaN logits for 1 of the 4 images .*known test images \(image 7\)'):
        extract(tiny_cnn, loader, 'cpu', progress='known test images')


def test_no_images_is_an_error(tiny_cnn):
    with pytest.raises(ValueError, match='holds no image'):
        extract(tiny_cnn, [], 'cpu')


def test_mixed_precision_gives_float32_near_the_full(tiny_cnn):
    loader = batches()[2]
    full, half = extract(tiny_cnn, loader, 'cpu'), extract(tiny_cnn, loader, 'cpu', amp_dtype=torch.bfloat16)
    assert half.logits.dtype == half.features.dtype == torch.float32
    assert not torch.equal(full.logits, half.logits)
    # bfloat16 keeps eight bits; a few layers add up a few roundings.
    torch.testing.assert_close(full.features, half.features, rtol=0.1, atol=0.1)


def test_channels_last_is_only_a_layout(tiny_cnn):
    loader = batches()[2]
    plain = extract(tiny_cnn, loader, 'cpu')
    laid = extract(tiny_cnn.to(memory_format=torch.channels_last), loader, 'cpu', channels_last=True)
    torch.testing.assert_close(plain.logits, laid.logits, rtol=1e-4, atol=1e-5)


def test_results_may_be_written_to_and_differentiated(tiny_cnn):
    found = extract(tiny_cnn, batches()[2], 'cpu')
    found.features.requires_grad_().sum().backward()
    found.logits[0] = 0


def test_a_long_pass_without_a_terminal_logs_the_time_left(tiny_cnn, monkeypatch, caplog):
    monkeypatch.setattr(module, '_REPORT_EVERY', -1.)
    with caplog.at_level(logging.INFO, logger='gradmix_timm.openset.extract'):
        extract(tiny_cnn, batches()[2], 'cpu', progress='unknown test images')
    assert [record.getMessage().split(',')[0] for record in caplog.records] == [
        f'unknown test images: batch {number} of 4' for number in (1, 2, 3)]


class Memory(nn.Module):
    """A device whose memory takes so many images at once."""

    def __init__(self, model, most, error=None):
        super().__init__()
        self.model, self.most, self.sizes = model, most, []
        self.error = error or torch.OutOfMemoryError('out of memory')

    def get_classifier(self):
        return self.model.get_classifier()

    def forward(self, images):
        self.sizes.append(len(images))
        if len(images) > self.most:
            raise self.error
        return self.model(images)


def test_a_batch_that_memory_does_not_take_is_halved_once_and_for_all(caplog):
    model = randomise(timm.create_model('test_resnet', num_classes=3))
    _, labels, loader = batches(count=15, size=5)
    whole, narrow = extract(model, loader, 'cpu'), Memory(model, most=2)
    pieces = extract(narrow, loader, 'cpu')
    assert narrow.sizes == [5, 2, 2, 1, 2, 2, 1, 2, 2, 1]
    torch.testing.assert_close(pieces.logits, whole.logits)
    torch.testing.assert_close(pieces.features, whole.features)
    assert pieces.label.tolist() == labels.tolist()
    assert [record.getMessage() for record in caplog.records] == [
        'the loader: out of memory with 5 images at once, going on with 2; a batch size of 2 avoids this']


def test_the_cpus_allocator_says_it_in_other_words():
    with pytest.raises(RuntimeError) as full:
        torch.empty(10 ** 15)
    model = randomise(timm.create_model('test_resnet', num_classes=3))
    _, _, loader = batches(count=5, size=5)
    narrow = Memory(model, most=2, error=full.value)
    torch.testing.assert_close(extract(narrow, loader, 'cpu').logits, extract(model, loader, 'cpu').logits)
    with pytest.raises(RuntimeError, match='shapes differ'):
        extract(Memory(model, most=2, error=RuntimeError('shapes differ')), loader, 'cpu')


@pytest.mark.parametrize('handed', [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64])
def test_images_are_taken_into_the_precision_of_the_weights(dtype, handed):
    model = randomise(timm.create_model('test_resnet', num_classes=3)).to(dtype)
    images, labels, _ = batches(count=4)
    found = extract(model, [(images.to(handed), labels)], 'cpu')
    with torch.no_grad():
        expected = model.eval()(images.to(handed).to(dtype)).float()
    torch.testing.assert_close(found.logits, expected)
    odin = score_images(fit_score('odin', None), model, [(images.to(handed), labels)], 'cpu')
    assert odin.isfinite().all()


def test_whole_numbers_are_refused_in_words_unless_the_model_takes_them():
    class Bytes(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, images):
            return self.model(images.float() / 255)

    model = randomise(timm.create_model('test_resnet', num_classes=3))
    images, labels = torch.randint(0, 255, (2, 3, 64, 64), dtype=torch.uint8), torch.zeros(2).long()
    with pytest.raises(ValueError, match=r'does not take images of torch\.uint8 .*pass them as floats'):
        extract(model, [(images, labels)], 'cpu')
    assert extract(Bytes(model), [(images, labels)], 'cpu').logits.shape == (2, 3)


def test_no_memory_for_a_single_image_is_an_error():
    _, _, loader = batches()
    with pytest.raises(ValueError, match=r'test: the device has no memory for a single image of \[3, 64, 64\]; use'):
        extract(Memory(timm.create_model('test_resnet', num_classes=3), most=0), loader, 'cpu', progress='test')
