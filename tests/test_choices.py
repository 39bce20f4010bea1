"""The names that flags offer are those that the library has."""
from __future__ import annotations

from functools import partial

from timm.loss import LOSS_TYPES

from gradmix_timm import choices, list_mixers
from gradmix_timm.attribution import CONTROLS, METHODS
from gradmix_timm.classifier.onnx_export import INPUTS
from gradmix_timm.cli.openset.parser import build_parser as openset_parser
from gradmix_timm.cli.training.args import build_parser as train_parser
from gradmix_timm.cli.training.timm_flags import LOSSES
from gradmix_timm.data.corruption import list_corruptions, official_name
from gradmix_timm.data.image_lists import SUITES
from gradmix_timm.mixers import _MIXERS
from gradmix_timm.openset.presets import PRESETS
from gradmix_timm.openset.scores import SCORES, list_scores, score_kind
from gradmix_timm.options import OPTIONS
from gradmix_timm.study.plan import EVALUATIONS


def own(registry, names):
    """Names whose entry is a class of the package: other tests register more."""
    entries = {name: registry[name] for name in names}
    return tuple(name for name, entry in entries.items() if (
        entry.func if isinstance(entry, partial) else entry).__module__.startswith('gradmix_timm.'))


def test_registries_hold_these_names_in_this_order():
    mixers = [name for name in list_mixers() if not name.startswith(('doctest', 'test-'))]
    assert own(_MIXERS, mixers) == choices.MIXERS
    scores = own(SCORES, list_scores())
    assert scores == (*choices.EMBEDDING_SCORES, *choices.MODEL_SCORES)
    assert tuple(name for name in scores if score_kind(name).requires_model) == choices.MODEL_SCORES
    assert tuple(METHODS)[:len(choices.ATTRIBUTIONS)] == choices.ATTRIBUTIONS
    assert tuple(PRESETS) == choices.PRESETS
    assert tuple(SUITES) == choices.SUITES


def test_flags_whose_list_is_one_word_are_named():
    """A study makes command lines of lists without the parsers."""
    commands = next(action for action in openset_parser()._actions if isinstance(action.choices, dict)).choices
    parsers = [train_parser(), *(commands[name] for name in EVALUATIONS)]
    by_name = {action.dest: [one for parser in parsers for one in parser._actions if one.dest == action.dest]
               for parser in parsers for action in parser._actions}
    assert {name for name, actions in by_name.items() if any(takes_commas(action) for action in actions)} == set(
        choices.COMMA_LISTS)
    assert all(takes_commas(action) for name in choices.COMMA_LISTS for action in by_name[name])


def takes_commas(action):
    return action.nargs is None and ',' in str(action.metavar)


def test_other_tables_agree():
    assert OPTIONS['attribution'].metadata['choices'] == (*choices.ATTRIBUTIONS, *CONTROLS)
    assert sorted(map(official_name, list_corruptions())) == sorted(sum(choices.FAMILIES.values(), ()))
    assert tuple(INPUTS) == choices.ONNX_INPUTS
    assert LOSSES == LOSS_TYPES  # timm's own, which its script offers
