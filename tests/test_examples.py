"""Every example runs, and the model it trains learns something."""
from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / 'examples'


@pytest.fixture(autouse=True)
def _on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield
    for path in EXAMPLES.glob('*.py'):
        sys.modules.pop(path.stem, None)


def test_no_example_is_without_a_test():
    # onnx_runtime.py is run by tests/test_onnx_image.py.
    tested = {'digits', 'plain_pytorch', 'lightning_module', 'accelerate_loop', 'hf_trainer', 'torchvision_reference',
              'onnx_runtime'}
    assert {path.stem for path in EXAMPLES.glob('*.py')} == tested


def test_digits_are_known_and_unknown():
    train, test, unknown = importlib.import_module('digits').known_and_unknown()
    assert len(train) + len(test) + len(unknown) == 1797
    assert set(train.tensors[1].tolist()) == set(test.tensors[1].tolist()) == set(range(6))
    assert unknown.shape[1:] == (1, 32, 32)


@pytest.mark.slow
def test_plain_pytorch():
    result = importlib.import_module('plain_pytorch').main()
    assert result['accuracy'] > 0.7
    assert result['auroc'] > 0.6


@pytest.mark.slow
def test_lightning_module():
    pytest.importorskip('lightning')
    module = importlib.import_module('lightning_module')
    result = module.main(epochs=3, batch_size=32, enable_progress_bar=False, enable_model_summary=False)
    assert result['accuracy'] > 0.7


@pytest.mark.slow
def test_lightning_module_with_labels_that_are_known_after_the_pass():
    pytest.importorskip('lightning')
    module = importlib.import_module('lightning_module')
    result = module.main('test_vit', epochs=2, batch_size=32, mixer='transmix', model_kwargs={'img_size': 32},
                         enable_progress_bar=False, enable_model_summary=False)
    assert result['accuracy'] > 0.3


@pytest.mark.slow
@pytest.mark.parametrize('precision', ['no', 'bf16'])
def test_accelerate_loop(precision, monkeypatch):
    accelerate = pytest.importorskip('accelerate')
    accelerate.state.AcceleratorState._reset_state(True)
    epochs = 5 if precision == 'no' else 1
    accuracy = importlib.import_module('accelerate_loop').main(
        epochs=epochs, batch_size=32, cpu=True, mixed_precision=precision)
    accelerate.state.AcceleratorState._reset_state(True)
    assert accuracy > (0.7 if precision == 'no' else 0.0)


@pytest.mark.slow
def test_hf_trainer():
    pytest.importorskip('transformers')
    assert importlib.import_module('hf_trainer').main(epochs=3, batch_size=32) > 0.7


@pytest.mark.slow
def test_torchvision_reference():
    assert importlib.import_module('torchvision_reference').main(epochs=2) > 0.7
