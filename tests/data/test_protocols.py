"""Every split of every family is what its paper says, and errors name what to type."""
from __future__ import annotations

import pytest

from gradmix_timm.data import (
    ClassSplit,
    check_split,
    custom_split,
    duplicates,
    find_classes,
    list_families,
    list_protocols,
    load_split,
    n_distinct,
    n_trials,
    shared_classes,
)
from gradmix_timm.data.protocols import _class_names

SIZES = {'digits': (6, 4), 'mnist': (6, 4), 'svhn': (6, 4), 'cifar10': (6, 4), 'cifar+10': (4, 10),
         'cifar+50': (4, 50), 'tinyimagenet': (20, 180), 'cub': (100, 100), 'aircraft': (50, 50), 'cars': (98, 98),
         'imagenet': (1000, 1980)}
# As published: classes 37 (dias_f1) and three hard cars (the authors) are missing.
ODD = {('imagenet', 'ssb_2021', 0): (1000, 2000),
       ('cifar+50', 'dias_f1', 2): (4, 50), ('cars', 'gradmix_authors', 0): (98, 95)}
TRIALS = [(p, f, t) for p in list_protocols() for f in list_families(p) for t in range(n_trials(p, f))]
CLASSES = {name: entry['names'] for name, entry in _class_names().items()}
VEHICLES = {'airplane', 'automobile', 'ship', 'truck'}


def test_class_name_tables_are_whole():
    assert {name: len(names) for name, names in CLASSES.items()} == {
        'digits': 10, 'cifar10': 10, 'cifar100': 100, 'tinyimagenet': 200, 'cub': 200, 'aircraft': 100, 'cars': 196}
    assert all(len(set(names)) == len(names) for names in CLASSES.values())
    # Index orders that the lists rely on: alphabetical, code point (not natural), ids.
    for name in ('cifar10', 'cifar100', 'tinyimagenet', 'aircraft', 'cub'):
        assert CLASSES[name] == sorted(CLASSES[name]), name
    assert CLASSES['cub'][0] == '001.Black_footed_Albatross'
    assert CLASSES['cars'][5] == 'Acura Integra Type R 2001'


def test_number_of_trials():
    assert len(TRIALS) == 7 * 5 * 5 + 3 * 2 + 2
    assert set(list_protocols()) == set(SIZES)


@pytest.mark.parametrize('protocol', SIZES)
def test_splits_are_disjoint_cover_and_have_their_sizes(protocol):
    for family, trial in [(f, t) for p, f, t in TRIALS if p == protocol]:
        split = load_split(protocol, trial, family)
        sizes = len(split.known), len(split.unknown)
        if (protocol, family) == ('cifar+50', 'dias_f1'):
            assert sizes[0] == 4, trial
            assert sizes[1] in (49, 50), trial
        else:
            assert sizes == ODD.get((protocol, family, trial), SIZES[protocol]), (family, trial)
        assert (split.protocol, split.family, split.trial) == (protocol, family, trial)
        if protocol == 'imagenet':
            assert not set(split.known) & set(split.unknown)
            assert check_split(split, sorted(split.known), sorted(split.unknown)) is split
        elif split.unknown_dataset:
            assert (split.dataset, split.unknown_dataset) == ('cifar10', 'cifar100')
            check_split(split, CLASSES['cifar10'], CLASSES['cifar100'])
        else:
            assert not set(split.known) & set(split.unknown), (family, trial)
            assert check_split(split, CLASSES[split.dataset]) is split
            if (protocol, family) != ('cars', 'gradmix_authors'):
                assert sorted(split.known + split.unknown) == sorted(CLASSES[split.dataset]), (family, trial)


@pytest.mark.parametrize(('protocol', 'trial', 'family', 'known'), [
    ('cifar10', 0, None, 'airplane frog deer truck automobile horse'),  # [0, 6, 4, 9, 1, 7], not sorted
    ('cifar10', 1, 'gradmix_authors', 'horse frog deer truck airplane automobile'),
    ('digits', 0, None, '2 4 5 9 8 3'),
    ('mnist', 3, 'dias_f1', '7 3 8 4 6 1'),
    ('svhn', 4, 'arpl2020', '4 9 2 7 1 0'),
    ('cifar+10', 0, 'arpl2020', 'deer horse truck automobile'),
])
def test_head_order_is_that_of_the_published_list(protocol, trial, family, known):
    assert load_split(protocol, trial, family).known == tuple(known.split())


def test_names_mean_what_the_papers_say():
    # Neal et al.: vehicles known, the 50 animals of CIFAR-100 unknown; ARPL's lists ignore that rule.
    neal = load_split('cifar+50', 0, 'neal2018_cac')
    assert set(neal.known) == VEHICLES
    assert {'elephant', 'shark', 'woman'} < set(neal.unknown)
    assert not {'house', 'tank', 'rocket', 'rose'} & set(neal.unknown)
    assert {'motorcycle', 'rocket', 'tank'} < {n for t in range(5) for n in load_split('cifar+50', t).unknown}
    # SSB's hard unknowns are the nearest classes: the same model of another year, the next in the size of crow.
    hard = load_split('cars').groups['hard']
    assert 'Audi S4 Sedan 2007' in hard
    assert 'Audi S4 Sedan 2012' in load_split('cars').known
    assert '030.Fish_Crow' in load_split('cub').groups['hard']
    assert {'737-600', '737-900'} < set(load_split('aircraft').groups['hard'])
    assert {'737-200', '737-500'} < set(load_split('aircraft').known)


def test_groups_are_parts_of_the_unknowns_and_papers_put_medium_to_hard():
    sizes = {p: tuple(len(g) for g in load_split(p).groups.values()) for p in ('cub', 'aircraft', 'cars')}
    assert sizes == {'cub': (32, 34, 34, 68), 'aircraft': (20, 17, 13, 30), 'cars': (76, 15, 7, 22)}
    split = load_split('cub')
    assert list(split.groups) == ['easy', 'medium', 'hard', 'hard+medium']
    assert split.unknown == tuple(name for part in list(split.groups.values())[:3] for name in part)
    assert set(split.groups['hard+medium']) == {*split.groups['hard'], *split.groups['medium']}
    assert 'hard+medium' not in load_split('imagenet').groups  # it has no medium


def test_imagenets_known_classes_are_the_heads_order_and_its_hard_list_lost_twenty_people():
    now, then = load_split('imagenet'), load_split('imagenet', family='ssb_2021')
    assert now.known == then.known == tuple(sorted(now.known))  # the order of timm's heads
    assert now.known[0] == 'n01440764'  # tench
    assert now.known[1] == 'n01443537'  # goldfish
    assert now.groups['easy'] == then.groups['easy']
    gone = set(then.groups['hard']) - set(now.groups['hard'])
    assert (len(gone), len(set(now.groups['hard']) - set(then.groups['hard']))) == (20, 0)
    assert not set(now.groups['easy']) & set(now.groups['hard'])
    assert (now.dataset, now.unknown_dataset) == ('imagenet', 'imagenet21k')
    assert duplicates('imagenet') == ()


def test_digits_are_the_lists_of_mnist():
    for trial in range(5):
        assert load_split('digits', trial).known == load_split('mnist', trial).known


def test_duplicate_trials_are_flagged():
    assert duplicates('cifar10') == duplicates('svhn') == ((0, 1),)
    assert duplicates('cifar+10') == ()  # trials 1 and 2 share knowns, not unknowns
    assert duplicates('cifar+50', 'neal2018_cac') == ((0, 1, 2, 3, 4),)
    assert [n_distinct(p) for p in ('cifar10', 'svhn', 'mnist', 'cub')] == [4, 4, 5, 1]
    assert n_distinct('cifar+50', 'neal2018_cac') == 1


def test_families_agree_where_they_should():
    for protocol in ('mnist', 'svhn', 'cifar10', 'cifar+10', 'cifar+50', 'tinyimagenet'):
        for trial in range(5):
            assert load_split(protocol, trial).known == load_split(protocol, trial, 'gradmix_authors').known
    ours, published = load_split('cars'), load_split('cars', 0, 'gradmix_authors')
    missing = set(ours.groups['hard']) - set(published.groups['hard'])
    assert missing == {CLASSES['cars'][i] for i in (113, 126, 190)}
    assert set(load_split('cub').unknown) == set(load_split('cub', 0, 'gradmix_authors').unknown)


@pytest.mark.parametrize(('args', 'told'), [
    (('cifra10',), r"did you mean 'cifar10'.*Available: .*FILE\.yaml"),
    (('cifar10', 5), 'trials 0 to 4 in.*got 5'),
    (('cifar10', -1), 'trials 0 to 4 in.*got -1'),
    (('cub', 1), 'trials 0 to 0'),
    (('mnist', 0, 'arpl'), "no family 'arpl': did you mean 'arpl2020'"),
    (('mnist', 0, 'ssb'), "no family 'ssb': .*Available: arpl2020"),
    (('nowhere.yaml',), 'no protocol file at nowhere.yaml'),
])
def test_what_is_not_there_is_named_with_what_is(args, told):
    with pytest.raises(ValueError, match=told):
        load_split(*args)


def test_custom_split_takes_the_rest_as_unknown():
    split = custom_split(['c', 'a'], ['a', 'b', 'c', 'd'])
    assert (split.known, split.unknown, split.protocol) == (('c', 'a'), ('b', 'd'), None)
    with pytest.raises(ValueError, match="did you mean 'dog'"):
        custom_split(['dgo', 'cat'], ['dog', 'cat', 'bird'])
    with pytest.raises(ValueError, match='none is left as unknown: evaluate on other images, gradmix-openset ood'):
        custom_split(['a', 'b'], ['a', 'b'])
    with pytest.raises(ValueError, match="'a' is twice among the known"):
        custom_split(['a', 'a'], ['a', 'b'])
    with pytest.raises(ValueError, match='under two spellings'):
        custom_split(['plane', 'airplane'], ['airplane', 'car', 'ship'])
    with pytest.raises(ValueError, match='two known classes or more'):
        custom_split(['a'], ['a', 'b'])


def test_unknowns_are_looked_for_too():
    with pytest.raises(ValueError, match="no class '0' among the 9"):
        check_split(load_split('digits'), [str(i) for i in range(1, 10)])
    with pytest.raises(ValueError, match='among the 10 of the data set'):
        check_split(load_split('cifar+10'), CLASSES['cifar10'], CLASSES['cifar10'])


def test_names_of_a_data_set_may_be_spelled_another_way():
    mnist = ['0 - zero', '1 - one', '2 - two']
    assert find_classes(['2', '0'], mnist) == (2, 0)
    assert find_classes(CLASSES['cub'], [name.split('.')[1] for name in CLASSES['cub']]) == tuple(range(200))
    assert find_classes(['F/A-18', 'F-16A/B'], ['F-16A_B', 'F_A-18']) == (1, 0)
    assert find_classes(['aquarium_fish'], ['aquarium fish']) == (0,)
    assert find_classes(['a', 'A'], ['A', 'a']) == (1, 0)  # as written comes first
    with pytest.raises(ValueError, match='no class'):
        find_classes(['x y'], ['x_y', 'x-y'])  # could be either
    with pytest.raises(ValueError, match="did you mean 'maple_tree'"):
        find_classes(['mapel_tree'], CLASSES['cifar100'])
    with pytest.raises(ValueError, match='Available: b, "caf\u00e9, noir"; a name with a comma goes in double quotes'):
        find_classes(['caf\u00e9', 'noir'], ['caf\u00e9, noir', 'b'])


def test_spelling_never_makes_two_classes_one():
    # Decomposed, as macOS writes folders; and back.
    assert find_classes(['Ka\u0308se', 'Fu\u00df'], ['FUSS', 'K\u00e4se']) == (1, 0)
    signs, words = ['+', '-', '\u00f7'], ['\u0915\u093e', '\u0915\u0940']  # Hindi, apart by a vowel sign
    assert shared_classes(signs, ['*', '-']) == {1: '-'}
    assert shared_classes(words, words[1:]) == {1: words[1]}
    with pytest.raises(ValueError, match='no class'):
        find_classes(['*'], ['+', 'a'])


def file(tmp_path, text):
    path = tmp_path / 'pets.yaml'
    path.write_text(text, encoding='utf-8')
    return str(path)


def test_file_gives_a_split(tmp_path):
    path = file(tmp_path, 'name: pets\nknown: [cat, dog]\nunknown: [newt, 7]\ngroups: {wet: [newt]}\n')
    assert load_split(path) == ClassSplit(
        known=('cat', 'dog'), unknown=('newt', '7'), protocol='pets', groups={'wet': ('newt',)})


def test_file_without_unknowns_means_all_others(tmp_path):
    split = load_split(file(tmp_path, 'known: [cat, dog]\ngroups: {wet: [newt]}'))
    assert (split.protocol, split.unknown) == ('pets', ())
    assert check_split(split, ['newt', 'cat', 'owl', 'dog']).unknown == ('newt', 'owl')
    with pytest.raises(ValueError, match="group 'wet' holds 'newt'"):
        check_split(split, ['cat', 'owl', 'dog'])


@pytest.mark.parametrize(('text', 'told'), [
    ('- cat\n- dog', 'should be a mapping with known: .*got list'),
    ('unknown: [cat]', 'got one without known'),
    ('', 'got NoneType'),
    ('known: [cat, dog', 'not YAML'),
    ('known: cat', "known should be a list of class names, got 'cat'"),
    ('known: [cat, dog]\nunknown: []', 'unknown should be a list'),
    ('known: [no, yes]', 'reads as bool; write class names in quotes'),
    ('known: [cat, dog]\nunknwon: [x]', "did you mean 'unknown'"),
    ('known: [cat, dog]\nunknown: [dog]', "'dog' is known and unknown"),
    ('known: [cat, dog]\nunknown: [owl]\ngroups: {a: [ow]}', "did you mean 'owl'"),
    ('known: [cat, dog]\ngroups: [owl]', 'groups should be a mapping'),
    ('known: [cat, dog]\nunknown: [owl, newt]\ngroups: {all: [owl]}', "pets.yaml: a group called 'all'"),
    ('known: [cat, dog]\nname: no', 'name should be a word, got False'),
    ('known: [001, 010]', '001, which YAML reads as 1, without quotes'),
])
def test_file_errors_say_what_to_write(text, told, tmp_path):
    with pytest.raises(ValueError, match=told):
        load_split(file(tmp_path, text))


def test_file_has_one_trial(tmp_path):
    path = file(tmp_path, 'known: [cat, dog]')
    with pytest.raises(ValueError, match='leave out --osr-trial'):
        load_split(path, trial=1)
    with pytest.raises(ValueError, match='leave out --osr-trial and --osr-family'):
        load_split(path, family='ssb')
