"""Stands for train.py and gradmix-openset: leaves their files, with figures that are functions of the flags."""
from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def main() -> None:
    module, *words = sys.argv[1:]
    flags = {word: words[place + 1] for place, word in enumerate(words[:-1]) if word.startswith('--')}
    out = Path(flags['--output'])
    if module.endswith('train'):
        run = out / flags['--experiment']
        run.mkdir(parents=True, exist_ok=True)
        with Path(out, '..', 'calls.txt').open('a') as calls:
            calls.write(f'{flags["--mixup-mode"]} {flags["--seed"]} {"resumed" if "--resume" in flags else "fresh"}\n')
        if flags['--mixup-mode'] == 'broken':
            sys.exit('error: no such mixer')
        if flags['--mixup-mode'] == 'slow' and '--resume' not in flags:
            (run / 'last.pth.tar').write_text('half')
            time.sleep(60)
        (run / 'model_best.pth.tar').write_text(json.dumps(flags))
        if flags['--mixup-mode'] == 'overfit':
            (run / 'last.pth.tar').write_text(json.dumps({**flags, '--seed': '20'}))
        return
    flags = json.loads(Path(flags['--checkpoint']).read_text())
    seed, mixer = int(flags['--seed']), flags['--mixup-mode']
    value = .5 + .01 * seed + {'none': 0., 'slow': 0.}.get(mixer, .1)
    scores = {name: {'auroc': value, 'aupr_in': value, 'aupr_out': value, 'oscr': value - .1, 'detection_error': .3,
                     'fpr_at_95_known': 1 - value, 'fpr_at_95_unknown': .4} for name in ('msp', 'mls')}
    closed_set = {'top1': value, 'top1_ci': [value - .1, value + .1]}
    groups = {view: {'view': view, 'n_known': 20, 'n_unknown': 10, 'scores': scores,
                     'closed_set': {**closed_set, 'top1': value - lost}}
              for view, lost in (('own', 0.), ('absent', .1), ('conflict', .3))} if 'shortcut' in words else {}
    out.mkdir(parents=True, exist_ok=True)
    (out / 'results.json').write_text(json.dumps({
        'format': 1, 'protocol': 'digits', 'family': 'arpl2020', 'trial': 0, 'seed': seed, 'scores': scores,
        'known_classes': ['0', '1'], 'unknown_classes': ['2'], 'n_known': 20, 'n_unknown': 10, 'per_class': {},
        'closed_set': closed_set, 'groups': groups,
        'manifest': {'mixer': mixer, 'mixer_options': {}, 'model': 'resnet10t', 'objective': 'ce',
                     'run_folder': str(out.resolve().parent), 'data': {'data_dir': str(Path('images').resolve())},
                     'list_sha256': {'known': 'a', 'unknown': 'b'}, 'pretraining': 'none'}}))


if __name__ == '__main__':
    main()
