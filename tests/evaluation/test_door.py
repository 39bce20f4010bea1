"""`gradmix_timm.evaluate`: any model on loaders, data sets and folders; the model and the caller's streams stay."""
from __future__ import annotations

import csv
import json
import random
import re

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from tiny_checkpoints import CONFIG, class_folders, save_checkpoint
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler, Subset, TensorDataset
from torchvision.datasets import ImageFolder

import gradmix_timm
from gradmix_timm import evaluate
from gradmix_timm.checkpoint import load_checkpoint
from gradmix_timm.cli.errors import run_console
from gradmix_timm.cli.openset import main as openset_command
from gradmix_timm.data.preprocessing import Preprocessing
from gradmix_timm.evaluation import Evaluation
from gradmix_timm.evaluation.opening import open_known
from gradmix_timm.evaluation.result import Predictions
from gradmix_timm.evaluation.settings import DataOptions
from gradmix_timm.openset import metrics

SMALL = Preprocessing(input_size=(3, 12, 12), image_mode='RGB', interpolation='bilinear', mean=(0.5,) * 3,
                      std=(0.5,) * 3, crop_pct=1.)
QUICK = {'bootstrap': 0, 'trivial_images': 20, 'feature_map': 16}


class Net(nn.Module):
    """A user's own: a head that get_classifier does not name, dropout, batch norm."""

    def __init__(self, classes=3):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                                  nn.Flatten())
        self.drop, self.top = nn.Dropout(0.5), nn.Linear(8, classes)

    def forward(self, images):
        return self.top(self.drop(self.body(images)))


def tensors(seed, count=60, classes=3, shift=0.):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    images = torch.randn(count, 3, 12, 12, generator=generator) + labels[:, None, None, None] + shift
    return TensorDataset(images, labels)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().train()


def test_a_compiled_model_is_evaluated_as_the_one_inside():
    torch.manual_seed(0)
    net = timm.create_model('test_resnet', num_classes=3).eval()
    images = TensorDataset(torch.randn(12, 3, 32, 32), torch.arange(12) % 3)
    unknown = TensorDataset(images.tensors[0] + 1, images.tensors[1])
    given = {'known': images, 'unknown': unknown, 'scores': 'mls', **QUICK}
    plain = evaluate(net, **given)
    compiled = evaluate(torch.compile(net, backend='eager'), **given)
    assert compiled.predictions.columns == plain.predictions.columns


def test_a_backbone_without_its_classifier_is_refused():
    net = timm.create_model('test_resnet', num_classes=0)
    with pytest.raises(ValueError, match='num_classes=0 and gives features; give the whole classifier'):
        evaluate(net, known=tensors(1), unknown=tensors(2), scores='mls', **QUICK)


class Scaled(Net):
    """A plain number in the forward pass, which neither its weights nor its text show."""

    scale = 1.

    def forward(self, images):
        return super().forward(images * self.scale)


def test_the_cache_knows_plain_attributes_of_a_live_module(tmp_path):
    torch.manual_seed(0)
    net = Scaled().eval()
    known = class_folders(tmp_path / 'known') / 'test'
    unknown = class_folders(tmp_path / 'unknown', ('dog', 'elk', 'fox'), seed=1) / 'test'
    found = []
    for scale, cache in ((1., 'cache'), (-3., 'cache'), (-3., None), (1., 'cache')):
        net.scale = scale
        result = evaluate(net, known=str(known), unknown=str(unknown), scores='mls', preprocessing=SMALL,
                          known_classes=['ant', 'bee', 'cat'], cache=cache and str(tmp_path / cache), **QUICK)
        found.append(result.predictions.columns['mls'])
    assert found[0] == found[3]
    assert found[1] == found[2]
    assert found[0] != found[1]


def test_a_live_model_on_loaders_gives_what_its_logits_give(net):
    known, unknown = tensors(1), tensors(2, shift=5)
    found = evaluate(net, train=DataLoader(tensors(0, 90), 32, shuffle=True), known=DataLoader(known, 16),
                     unknown={'far': DataLoader(unknown, 7)}, scores=('mls', 'knn'), **QUICK)
    net.eval()
    with torch.no_grad():
        logits, others = net(known.tensors[0]), net(unknown.tensors[0])
    assert found.scores['mls']['auroc'] == pytest.approx(metrics.auroc(logits.amax(1), others.amax(1)), abs=1e-3)
    assert found.closed_set['top1'] == float((logits.argmax(1) == known.tensors[1]).double().mean())
    assert list(found.scores) == ['mls', 'knn']
    assert list(found.groups) == ['far']
    assert len(found.predictions) == 120
    row = found.predictions[0]
    assert list(row) == ['file', 'label', 'known', 'predicted', 'probability', 'mls', 'knn']
    assert (row['label'], row['known']) == ('0', True)
    assert row['probability'] == pytest.approx(float(logits[0].softmax(0).max()), rel=1e-5)
    assert row['mls'] == pytest.approx(float(logits[0].max()), rel=1e-5)
    assert found.predictions[119]['label'] == 'far'


def test_an_output_for_no_class_is_folded_into_the_others(net):
    """Of three outputs two are classes: the largest logit is the likelier class's log-odds against no class."""
    known, unknown = tensors(1, classes=2), tensors(2, shift=5)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = evaluate(net, known=known, unknown=unknown, scores=('mls', 'energy'), unknown_output=True, **QUICK)
    net.eval()
    with torch.no_grad():
        logits, others = (part[:, :2] - part[:, 2:] for part in (net(known.tensors[0]), net(unknown.tensors[0])))
    assert found.results['known_classes'] == ['0', '1']
    assert found.closed_set['top1'] == float((logits.argmax(1) == known.tensors[1]).double().mean())
    assert [row['mls'] for row in found.predictions[:60]] == pytest.approx(logits.amax(1).tolist(), rel=1e-4)
    assert [row['energy'] for row in found.predictions[60:]] == pytest.approx(others.logsumexp(1).tolist(), rel=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_an_output_for_no_class_needs_a_live_linear_head(net, tmp_path):
    with pytest.raises(ValueError, match='is for live modules'):
        evaluate('resnet18', known=tensors(1), unknown=tensors(2), pretrained=False, unknown_output=True)
    net.top = torch.nn.Linear(net.top.in_features, 2)
    with pytest.raises(ValueError, match=r'expected an nn\.Linear with an output'):
        evaluate(net, known=tensors(1), unknown=tensors(2), unknown_output=True)


def test_the_model_and_the_streams_of_the_caller_stay_as_they_were(net):
    net.top.requires_grad_(False)
    net.drop.eval()
    net.body.register_forward_hook(lambda *_: None)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in net.modules()]
    streams = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    evaluate(net, train=tensors(0, 90), known=tensors(1), unknown=DataLoader(tensors(2), 8, shuffle=True), **QUICK)
    assert [module.training for module in net.modules()] == modes
    assert [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in net.modules()] == hooks
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert [p.requires_grad for p in net.top.parameters()] == [False, False]
    assert all(p.grad is None for p in net.parameters())
    assert torch.equal(torch.get_rng_state(), streams[0])
    assert (np.random.get_state()[1] == streams[1]).all()  # noqa: NPY002
    assert random.getstate() == streams[2]


def test_scores_that_are_fitted_are_left_out_by_name_without_training_images(net, caplog):
    found = evaluate(net, known=tensors(1), unknown=tensors(2), scores=('mls', 'knn', 'mahalanobis'), **QUICK)
    assert list(found.scores) == ['mls']
    assert set(found.left_out) == {'knn', 'mahalanobis'}
    assert caplog.text.count('scores that are fitted are left out (knn, mahalanobis)') == 1


def test_a_model_without_a_layer_of_features_is_evaluated_by_its_logits():
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    found = evaluate(net, train=tensors(0, 90), known=tensors(1), unknown=tensors(2), **QUICK)
    assert {'msp', 'mls', 'energy'} <= set(found.scores)
    for name in ('knn', 'vim', 'gradnorm', 'class-knn', 'class-knn-share'):  # class-knn was 0.5 of features 0 wide
        assert 'no layer at which features could be read: give it a get_classifier()' in found.left_out[name]


@pytest.mark.parametrize('as_loader', [False, True])
def test_test_images_that_are_training_images_are_refused(net, as_loader):
    data = tensors(1)
    train = DataLoader(data, 8, shuffle=True) if as_loader else data
    with pytest.raises(ValueError, match='60 of the 60 test images are training images'):
        evaluate(net, train=train, known=data, unknown=tensors(2), **QUICK)


def test_held_out_images_that_are_training_images_are_refused(net, places):
    train, some = tensors(0, 90), Subset(tensors(0, 90), range(20))
    with pytest.raises(ValueError, match=r'20 of the 20 held-out images are training images.* as held_out='):
        evaluate(net, train=train, held_out=some, known=tensors(1), unknown=tensors(2), **QUICK)
    data, other, checkpoint = places
    with pytest.raises(ValueError, match='60 of the 60 held-out images are training images'):
        evaluate(checkpoint, train=data, held_out=data / 'train', known=data / 'test', unknown=other, device='cpu',
                 **QUICK)


@pytest.mark.parametrize('kind', ['test', 'training', 'held-out'])
def test_unknown_tensors_that_are_known_images_are_refused(net, kind):
    parts = {'test': tensors(1), 'training': tensors(0, 90), 'held-out': tensors(3)}
    mixed = torch.cat([tensors(2).tensors[0], parts[kind].tensors[0][:5]])
    unknown = DataLoader(TensorDataset(mixed, torch.zeros(len(mixed), dtype=torch.int64)), 16)
    with pytest.raises(ValueError, match=f'5 of the 65 images of far are known {kind} images'):
        evaluate(net, known=parts['test'], train=parts['training'], held_out=parts['held-out'],
                 unknown={'far': unknown}, **QUICK)


def test_unknown_pictures_in_memory_that_are_known_images_are_refused():
    class Pictures(Dataset):
        def __init__(self, seeds):
            self.seeds = list(seeds)

        def __len__(self):
            return len(self.seeds)

        def __getitem__(self, row):
            pixels = np.random.default_rng(self.seeds[row]).integers(0, 256, (20, 20, 3), dtype=np.uint8)
            return Image.fromarray(pixels), row % 3

    net = timm.create_model('test_resnet', num_classes=3)
    with pytest.raises(ValueError, match='10 of the 20 images of unknown are known test images'):
        evaluate(net, known=Pictures(range(30)), unknown=Pictures(range(20, 40)), **QUICK)


def test_a_loader_that_shuffles_or_drops_is_read_whole_and_in_order(net):
    known = tensors(1, 61)
    one = evaluate(net, known=DataLoader(known, 16, shuffle=True, drop_last=True), unknown=tensors(2), scores='mls',
                   **QUICK)
    two = evaluate(net, known=known, unknown=tensors(2), scores='mls', batch_size=16, **QUICK)
    assert one.predictions.columns['mls'] == two.predictions.columns['mls']


@pytest.mark.parametrize('form', ['tensors', 'arrays', 'dicts', 'image dicts'])
def test_images_and_labels_come_in_every_usual_form(net, form):
    known, unknown = tensors(1).tensors, tensors(2).tensors
    wanted = evaluate(net, known=TensorDataset(*known), unknown=TensorDataset(*unknown), **QUICK)
    if form == 'tensors':
        given = known, unknown[0]
    elif form == 'arrays':
        given = tuple(part.numpy() for part in known), unknown[0].numpy()
    else:
        keys = ('pixel_values', 'labels') if form == 'dicts' else ('image', 'label')
        given = tuple(DataLoader([dict(zip(keys, row, strict=True)) for row in zip(*part, strict=True)], 16)
                      for part in (known, unknown))
    found = evaluate(net, known=given[0], unknown=given[1], **QUICK)
    assert found.scores == wanted.scores
    with pytest.raises(ValueError, match=r'known test images: 3 images and 2 labels'):
        evaluate(net, known=(known[0][:3], known[1][:2]), unknown=unknown[0], **QUICK)


def test_a_loader_of_one_process_part_is_refused(net):
    data = tensors(1)
    sampler = DistributedSampler(data, num_replicas=2, rank=0, shuffle=False)
    for loader in (DataLoader(data, 16, sampler=sampler),
                   DataLoader(data, batch_sampler=BatchSampler(sampler, 16, drop_last=False))):
        with pytest.raises(ValueError, match=r'known test images: .* DistributedSampler, .* one of 2 parts'):
            evaluate(net, known=loader, unknown=tensors(2), **QUICK)
    whole = DataLoader(data, 16, sampler=DistributedSampler(data, num_replicas=1, rank=0, shuffle=False))
    assert evaluate(net, known=whole, unknown=tensors(2), scores='mls', **QUICK).results['n_known'] == 60


def test_images_that_hold_nan_are_not_blamed_on_the_weights(net):
    images, labels = tensors(1).tensors
    images[7, 0, 0, 0] = float('nan')
    with pytest.raises(ValueError, match=r'known test images \(image 7\): the images themselves hold NaN'):
        evaluate(net, known=TensorDataset(images, labels), unknown=tensors(2), **QUICK)


def test_a_failure_of_the_model_says_on_which_images(net):
    grey = TensorDataset(tensors(2).tensors[0][:, :1], tensors(2).tensors[1])
    with pytest.raises(RuntimeError) as caught:
        evaluate(net, known=tensors(1), unknown={'grey': grey}, **QUICK)
    assert caught.value.__notes__ == ['The model was given images of grey, [60, 1, 12, 12].']


def test_only_the_rows_of_a_subset_are_read(net):
    batches = [(tensors(2).tensors[0], torch.zeros(60).long())]
    found = evaluate(net, known=Subset(tensors(1), range(0, 30)), unknown=batches, scores='mls', **QUICK)
    assert (found.results['n_known'], found.results['n_unknown']) == (30, 60)


def test_labels_that_are_no_class_are_refused_with_their_place(net):
    images, labels = tensors(1).tensors
    with pytest.raises(ValueError, match=(
            r'label 3 of known image 5 is no class: expected 0 to 2, .*; where the data set names its classes, '
            r'known_classes=\[\.\.\.\] matches them by name')):
        evaluate(net, known=TensorDataset(images, labels.index_fill(0, torch.tensor(5), 3)), unknown=tensors(2),
                 **QUICK)


@pytest.mark.parametrize(('given', 'error', 'match'), [
    ({'known': 7}, TypeError, 'known test images: got int; expected a DataLoader'),
    ({'train': 7}, TypeError, 'known training images: got int'),
    ({'held_out': 7}, TypeError, 'held-out images: got int'),
    ({'unknown': {'far': 7}}, TypeError, 'images of far: got int'),
    ({'bootstrp': 3}, TypeError, "did you mean 'bootstrap'"),
    ({'gate': 'shut'}, ValueError, 'refuse, warn, off'), ({'scores': ('mlz',)}, ValueError, "did you mean 'mls'"),
    ({'scores': ()}, ValueError, 'one score or more'), ({'model': 7}, TypeError, 'expected a module'),
    ({'model': 'resnet19'}, ValueError, 'did you mean'), ({'known': 'nowhere'}, ValueError, 'say how a picture'),
    ({'batch_size': 0}, ValueError, 'batch_size=0: expected 1 or more'),
    ({'device': 'cpu'}, ValueError, 'live module'),
    ({'unknown': {'all': tensors(2)}}, ValueError, 'a name of its own for each set; all is'),
    ({'unknown': {'': tensors(2)}}, ValueError, 'a name of its own'),
    ({'unknown': {1: tensors(2), '1': tensors(3)}}, ValueError, "unknown={'1'"),
    ({'unknown': {'a=b': 'nowhere'}}, ValueError, "unknown={'a=b': 'nowhere'}: expected a name without"),
    ({'known_classes': 'abc'}, ValueError, r"known_classes='abc' is one text; .*known_classes=\['abc'\]"),
    ({'known': [(np.zeros((3, 8, 8), 'f4'), 0)]}, TypeError,
     r'an item of the data set of .* has images of type numpy\.ndarray; expected .*torch\.from_numpy.*PIL\.Image'),
    ({'known': iter([(np.zeros((2, 3, 8, 8), 'f4'), torch.zeros(2, dtype=int))])}, TypeError,
     r'a batch of .* has images of type numpy\.ndarray; expected .*torch\.from_numpy'),
    ({'known': [torch.zeros(3, 8, 8)]}, TypeError, 'an item of the data set of .* is Tensor; expected a DataLoader'),
    ({'unknown_output': 'no'}, ValueError, "unknown_output='no': expected True or False"),
    ({'known_classes': 4}, TypeError, 'known_classes=4: expected a list of names'),
    ({'near': ('blobs',)}, ValueError, 'near= and far= name each'),
    ({'near': 'blobs'}, ValueError, "they are unknown, got 'blobs'")])
def test_what_cannot_be_meant_is_refused(net, given, error, match):
    with pytest.raises(error, match=match):
        evaluate(**{'model': net, 'known': tensors(1), 'unknown': tensors(2), **QUICK, **given})


class Pictures(Dataset):
    """PIL images with labels and nothing else."""

    classes = ('red', 'blue')

    def __init__(self, seed, count=20):
        self.rng, self.count = np.random.default_rng(seed), count
        self.pixels = self.rng.integers(0, 255, (count, 20, 24, 3), dtype=np.uint8)

    def __len__(self):
        return self.count

    def __getitem__(self, row):
        return Image.fromarray(self.pixels[row]), row % 2


def test_pictures_go_through_the_models_own_preprocessing():
    torch.manual_seed(0)
    net = timm.create_model('test_resnet', num_classes=2)
    preprocessing = Preprocessing.of(CONFIG)
    found = evaluate(net, known=Pictures(0), unknown={'noise': 'noise:uniform', 'more': Pictures(1)}, scores='mls',
                     preprocessing=preprocessing, **QUICK)
    assert found.results['known_classes'] == ['red', 'blue']
    batch = torch.stack([preprocessing.transform()(Pictures(0)[row][0]) for row in range(20)])
    with torch.no_grad():
        logits = net.eval()(batch)
    assert found.predictions.columns['mls'][:20] == pytest.approx(logits.amax(1).tolist(), rel=1e-4)
    assert found.groups['more']['trivial'] is not None


@pytest.mark.parametrize('mode', ['L', 'P', 'CMYK', 'I;16'])
def test_pictures_are_read_in_the_mode_of_the_model(mode):
    class Others(Pictures):
        def __getitem__(self, row):
            image, label = super().__getitem__(row)
            if mode == 'I;16':
                return Image.fromarray(np.asarray(image.convert('L')).astype(np.uint16) * 257), label
            return image.convert(mode), label

    net, preprocessing = timm.create_model('test_resnet', num_classes=2), Preprocessing.of(CONFIG)
    found = evaluate(net, known=Others(0), unknown=Others(1), scores='mls', preprocessing=preprocessing, **QUICK)
    batch = torch.stack([preprocessing.transform()(preprocessing.decode(Others(0)[row][0])) for row in range(20)])
    with torch.no_grad():
        logits = net.eval()(batch)
    assert found.predictions.columns['mls'][:20] == pytest.approx(logits.amax(1).tolist(), rel=1e-4)


@pytest.mark.parametrize('gate', ['warn', 'refuse', 'off'])
def test_what_to_do_about_a_model_below_its_reference_is_up_to_the_caller(net, gate):
    def found():
        return evaluate(net, known=tensors(1), unknown=tensors(2, 9), scores='mls', reference_top1=99.5, gate=gate,
                        **QUICK).results['accuracy_gate']

    if gate == 'refuse':
        with pytest.raises(ValueError, match=r'reference_top1=99\.5 says 99\.50%'):
            found()
    else:
        assert ('reference_top1=99.5 says 99.50%' in found().get('warning', '')) == (gate == 'warn')


@pytest.mark.parametrize('reference', [0.99, 0, 101, float('nan'), '99'])
def test_a_reference_that_is_no_percentage_is_refused(net, reference):
    with pytest.raises(ValueError, match=rf'reference_top1={reference}: expected percent, from 1 to 100'):
        evaluate(net, known=tensors(1), unknown=tensors(2), reference_top1=reference, gate='refuse', **QUICK)


def test_sets_of_unknown_images_may_be_called_as_the_known_ones(net):
    found = evaluate(net, known=tensors(1), unknown={'known': tensors(2, 9), 'more': tensors(3, 6)}, scores='mls',
                     **QUICK)
    manifest = found.results['manifest']
    assert [manifest['data'][f'n_{name}'] for name in ('known', 'unknown known', 'more')] == [60, 9, 6]
    assert list(manifest['list_sha256']) == ['known', 'unknown known', 'more']


@pytest.fixture(scope='module')
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp('door')
    data = class_folders(root / 'data')
    class_folders(root / 'other', ('dog', 'newt', 'elk'), 7, splits=('test',), seed=1)
    return data, root / 'other', save_checkpoint(root / 'run' / 'last.pth.tar', data)


def test_a_checkpoint_on_folders_is_saved_and_loaded(places, tmp_path):
    data, other, checkpoint = places
    found = evaluate(checkpoint, train=data, known=data / 'test', unknown={'other': other}, scores=('mls', 'knn'),
                     device='cpu', **QUICK)
    assert found.results['known_classes'] == ['cat', 'ant']
    report = found.save(tmp_path / 'out')
    assert report.is_file()
    names = {path.name for path in (tmp_path / 'out').iterdir()}
    assert {'results.json', 'results.csv', 'results.md', 'predictions.csv', 'figures', 'report.html'} <= names
    with open(tmp_path / 'out' / 'predictions.csv') as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(found.predictions) == 60 + 21
    assert rows[0]['file'].endswith('.png')
    loaded = Evaluation.load(tmp_path / 'out')
    assert loaded.scores == found.scores
    assert list(loaded.predictions) == list(found.predictions)
    assert loaded.table() == found.table()
    assert loaded.report() == re.sub(r'Files: <a.*</a>\.(?=</p>)', '', report.read_text())
    assert '<table>' in found._repr_html_()
    assert 'mls' in repr(found)
    with pytest.raises(ValueError, match=r'no results\.json'):
        Evaluation.load(tmp_path)


def test_a_flat_folder_for_both_is_split_and_said(places, tmp_path, caplog):
    data, other, checkpoint = places
    found = evaluate(checkpoint, train=data / 'test', known=data / 'test', unknown=other, scores='knn', device='cpu',
                     **QUICK)
    assert (found.results['n_known'], found.results['manifest']['data']['n_train']) == (12, 48)
    assert 'has no split folders' in caplog.text
    assert json.dumps(found.results['manifest']['data']['flat_test'])


def test_the_public_names_are_listed():
    from gradmix_timm import evaluation, openset
    assert {'fit_score', 'list_scores', 'metrics', 'scores', 'Embeddings'} <= set(openset.__all__)
    assert all(getattr(openset, name) is not None for name in openset.__all__)
    assert {'evaluate', 'Evaluation', 'EvaluationImages', 'EvaluatedModel'} <= set(evaluation.__all__)
    assert {'evaluate', 'create_mixer', 'list_mixers', 'register_mixer', 'GradMix', 'attribute',
            'OpenSetClassifier'} <= set(dir(gradmix_timm))


def test_errors_of_python_name_keywords_and_those_of_the_command_flags(places, tmp_path, capsys):
    data, _, checkpoint = places
    with pytest.raises(ValueError, match=r"unknown=other: it has 2 of 3 .*; overlap='drop' leaves") as refused:
        evaluate(checkpoint, known=data / 'test', unknown={'other': data / 'test'}, device='cpu', **QUICK)
    assert '--' not in str(refused.value)
    with pytest.raises(ValueError, match=r'known training images: no folder or tar at nowhere$'):
        evaluate(checkpoint, known=data / 'test', train='nowhere', unknown=tensors(2), device='cpu', **QUICK)
    argv = ['ood', '--checkpoint', checkpoint, '--unknown', f'folder:other={data / "test"}', '--output', tmp_path]
    assert run_console(openset_command.main, list(map(str, argv))) == 2
    assert '--unknown other: it has 2 of 3 classes' in (said := capsys.readouterr().err)
    assert '--overlap drop leaves those out, --overlap keep counts' in said


@pytest.mark.parametrize('name', ["'=x", "''=x", '=x', "'80s", "'", ' x', "' x"])
def test_names_come_back_from_predictions_as_they_were(tmp_path, name):
    rows = Predictions({'file': [name], 'label': [name], 'known': [True], 'predicted': [name], 'probability': [.5]})
    (tmp_path / 'p.csv').write_text(rows.to_csv())
    assert Predictions.read_csv(tmp_path / 'p.csv')[0]['label'] == name


# ---- options picked on a validation set

@pytest.fixture
def apart(tmp_path):
    """Class folders that share nothing with those of ``places``."""
    return class_folders(tmp_path / 'apart', ('yak', 'zebu'), 6, splits=('test',), seed=5)


def test_options_are_picked_as_the_command_picks_them(places, apart, tmp_path):
    """The same rows, and the same record of what was tried."""
    _, other, checkpoint = places
    argv = ['ood', '--checkpoint', checkpoint, '--unknown', f'folder:other={other}', '--tune',
            f'folder:validation={apart}', '--scores', 'scale', 'gen', '--no-accuracy-gate', '--output',
            tmp_path / 'out', '--bootstrap', '0', '--device', 'cpu', '--trivial-images', '0', '--feature-map', '0']
    assert run_console(openset_command.main, list(map(str, argv))) == 0
    loaded = load_checkpoint(checkpoint)
    opened = open_known(DataOptions(), loaded, loaded.record.known_classes, Preprocessing.of(CONFIG))
    found = evaluate(checkpoint, known=opened.known, train=opened.train, held_out=opened.held_out,
                     unknown={'other': other}, tune=apart, scores=('scale', 'gen'), device='cpu', gate='off', **QUICK)
    written = Evaluation.load(tmp_path / 'out')
    assert found.results['tuning'] == written.results['tuning']
    assert found.results['tuning']['unknown'] == f'folder:validation={apart}'
    assert {name: part['auroc'] for name, part in found.scores.items()} == {
        name: part['auroc'] for name, part in written.scores.items()}


def test_options_are_picked_on_loaders(net):
    found = evaluate(net, train=tensors(0, 90), known=tensors(1), unknown={'far': tensors(2, shift=5)},
                     held_out=tensors(3), tune=DataLoader(tensors(4, shift=2), 16), scores='scale', **QUICK)
    tuning = found.results['tuning']
    assert (tuning['unknown'], tuning['n_known'], tuning['n_unknown']) == ('DataLoader', 60, 60)
    assert list(found.scores) == [tuning['scores']['scale']['chosen']]


def test_a_validation_set_that_is_not_apart_is_refused(net):
    """Of each kind of images, one is enough among those that are evaluated."""
    parts = {'known': tensors(1), 'unknown': {'far': tensors(2, shift=5)}, 'held_out': tensors(3),
             'train': tensors(0, 90)}
    own = tensors(4, shift=2).tensors[0]
    for images, words in ((tensors(1).tensors[0][:1], 'shares 1 of its 61 images with the known test images'),
                          (tensors(2, shift=5).tensors[0][7:8], 'shares 1 of its 61 images with far'),
                          (tensors(0, 90).tensors[0][:5], 'are known training images'),
                          (tensors(3).tensors[0][:5], 'are known held-out images')):
        mixed = torch.cat([own, images])
        with pytest.raises(ValueError, match=words):
            evaluate(net, **parts, tune=TensorDataset(mixed, torch.zeros(len(mixed)).long()), scores='scale', **QUICK)
    with pytest.raises(ValueError, match='add held_out=IMAGES'):
        evaluate(net, known=tensors(1), unknown=tensors(2), tune=tensors(4), scores='scale', **QUICK)


def test_a_validation_set_of_classes_that_are_evaluated_is_refused(places, tmp_path):
    """By the names of its folders, whether their path or a data set is passed; a subset has the classes of its rows."""
    data, other, checkpoint = places
    given = {'known': data / 'test', 'train': data, 'held_out': class_folders(tmp_path / 'held', ('cat', 'ant'), 4,
                                                                             ('test',), 8),
             'unknown': {'other': other}, 'scores': 'scale', 'device': 'cpu', 'gate': 'off', **QUICK}
    same = class_folders(tmp_path / 'same', ('newt', 'yak'), 3, ('test',), 9) / 'test'
    for tune in (same, ImageFolder(same)):
        with pytest.raises(ValueError, match=r"has 1 classes of other \('newt', ...\)"):
            evaluate(checkpoint, **given, tune=tune)
    known = ImageFolder(class_folders(tmp_path / 'more', ('cat', 'yak'), 3, ('test',), 9) / 'test')
    with pytest.raises(ValueError, match=r"has 1 classes of the known images \('cat', ...\)"):
        evaluate(checkpoint, **given, tune=known)
    yaks = Subset(known, [3, 4, 5])
    assert evaluate(checkpoint, **given, tune=yaks).results['tuning']['n_unknown'] == 3


# ---- one size, one order of classes

class Folders(ImageFolder):
    """Tensors of a side, as a caller's own transform makes them."""

    def __init__(self, root, side=32, **options):
        transform = Preprocessing.of({**CONFIG, 'input_size': (3, side, side)}).transform()
        super().__init__(root, transform, **options)


@pytest.mark.parametrize('as_known', [False, True])
def test_tensors_of_another_size_than_folders_are_read_at_are_refused(places, as_known):
    data, other, _ = places
    net = timm.create_model('test_resnet', num_classes=3)
    handed, folder = Folders(data / 'test', 64), other / 'test'
    given = {'known': DataLoader(handed, 16), 'unknown': {'other': folder}}
    if as_known:
        given = {'known': data / 'test', 'known_classes': ('ant', 'bee', 'cat'), 'unknown': Folders(folder, 64)}
    with pytest.raises(ValueError, match=(
            r"images of \w+ are tensors of 64 x 64 pixels and those of \w+ are read at 160 x 160.*"
            r"preprocessing=Preprocessing\.of\({'input_size': \(3, 64, 64\)}, model\)")):
        evaluate(net, **given, scores='mls', **QUICK)
    found = evaluate(net, **given, scores='mls', **QUICK,
                     preprocessing=Preprocessing.of({**CONFIG, 'input_size': (3, 64, 64)}, net))
    alike = evaluate(net, known=Folders(data / 'test', 64), unknown={'other': Folders(folder, 64)}, scores='mls',
                     **QUICK)
    assert found.predictions.columns['mls'] == pytest.approx(alike.predictions.columns['mls'], rel=1e-4)


def test_tensors_of_two_sizes_are_refused(net):
    small = TensorDataset(tensors(2).tensors[0][..., :8, :8], tensors(2).tensors[1])
    with pytest.raises(ValueError, match='unknown are tensors of 8 x 8 pixels and those of known of 12 x 12'):
        evaluate(net, known=tensors(1), unknown=small, **QUICK)
    with pytest.raises(ValueError, match=r'images of far are tensors of 8 x 8 pixels'):
        evaluate(net, known=tensors(1), unknown={'far': [*DataLoader(tensors(3), 30), *DataLoader(small, 30)]}, **QUICK)
    each = [[*DataLoader(tensors(seed), 30), *DataLoader(small, 30)] for seed in (1, 2)]
    each[1][2:] = [(images + 9, labels) for images, labels in each[1][2:]]
    assert evaluate(net, known=each[0], unknown=each[1], scores='mls', **QUICK).results['n_known'] == 120


def test_a_checkpoint_reads_folders_at_the_size_of_tensors_by_img_size(places):
    data, other, checkpoint = places
    known = Subset(Folders(data / 'test', 48), range(30))
    given = {'known': DataLoader(known, 16), 'unknown': {'other': other}, 'scores': 'mls', 'device': 'cpu', **QUICK}
    with pytest.raises(ValueError, match=r'read at 32 x 32, .*img_size=48'):
        evaluate(checkpoint, **given)
    assert evaluate(checkpoint, **given, img_size=48).results['n_known'] == 30


@pytest.mark.parametrize('form', ['tensors', 'loader', 'pictures'])
def test_a_data_set_that_names_its_classes_is_matched_by_name(places, form):
    data, other, checkpoint = places

    def handed(split, take):
        whole = ImageFolder(data / split) if form == 'pictures' else Folders(data / split)
        part = Subset(whole, [row for row, (_, label) in enumerate(whole.samples) if label != 1 and row % 2 == take])
        return DataLoader(part, 16) if form == 'loader' else part

    given = {'unknown': {'other': other}, 'scores': ('mls', 'class-knn'), 'device': 'cpu', **QUICK}
    found = evaluate(checkpoint, known=handed('test', 0), train=handed('train', 0), held_out=handed('train', 1),
                     **given)
    folders = evaluate(checkpoint, known=data / 'test', train=data, **given)
    truth = {row['file']: row['label'] for row in folders.predictions}
    rows = [row for row in found.predictions if row['known']]
    assert len(rows) == 30
    assert all(row['label'] in row['file'] for row in rows)
    assert {row['label'] for row in rows} == set(truth.values()) - {'other'}
    assert found.results['fits']['class-knn']['diagnostics']['samples'] == 30


def test_a_class_that_the_head_does_not_know_is_refused_if_it_has_an_image(places):
    data, other, checkpoint = places
    given = {'unknown': {'other': other}, 'scores': 'mls', 'device': 'cpu', **QUICK}
    with pytest.raises(ValueError, match=r"known test images: 30 images are of 'bee', .*Subset"):
        evaluate(checkpoint, known=Folders(data / 'test'), **given)
    with pytest.raises(ValueError, match=r'none of its classes \(dog, elk, newt'):
        evaluate(checkpoint, known=Folders(other / 'test'), **given)
    with pytest.raises(ValueError, match=r'known training images: none of its classes \(dog, elk, newt'):
        evaluate(checkpoint, known=data / 'test', train=ImageFolder(other / 'test'), **given)


def test_a_misspelt_known_class_is_not_taken_for_one_without_images(tmp_path, caplog):
    data = class_folders(tmp_path, ('airplane', 'bird', 'cat_01'), 4, ('test',)) / 'test'
    given = {'model': Net(), 'known': data, 'unknown': 'noise:uniform', 'scores': 'mls', 'preprocessing': SMALL,
             **QUICK}
    with pytest.raises(ValueError, match=r"has no class 'airplan', .*did you mean 'airplane'.*known_classes="):
        evaluate(**given, known_classes=['airplan', 'bird', 'cat_01'])
    assert evaluate(**given, known_classes=['airplane', 'bat', 'cat_02']).results['n_known'] == 4
    assert 'has 1 of the 3 known classes' in caplog.text


def test_labels_of_a_target_transform_are_positions_in_the_head(places):
    """It numbers as the caller likes, so the data set's names are no longer those of its labels."""
    data, other, checkpoint = places
    whole = Folders(data / 'test', target_transform={0: 1, 2: 0}.get)
    known = Subset(whole, [row for row, (_, label) in enumerate(whole.samples) if label != 1])
    found = evaluate(checkpoint, known=known, unknown={'other': other}, scores='mls', device='cpu', **QUICK)
    assert all(row['label'] in row['file'] for row in found.predictions if row['known'])


def test_a_head_without_names_takes_labels_for_positions(net, places):
    data, other, _ = places
    known = Subset(Folders(data / 'test'), range(60))
    found = evaluate(Net(2), known=known, unknown=Folders(other / 'test'), scores='mls', **QUICK)
    assert found.results['known_classes'] == ['0', '1']
