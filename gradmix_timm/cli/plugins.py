"""--device-modules: user modules, imported before flags are checked, so that their registrations are known."""
from __future__ import annotations

import importlib
from collections.abc import Sequence

__all__ = ['MODULES_HELP', 'import_modules']

MODULES_HELP = ('modules to import first, from PYTHONPATH: of a device backend, or of your own that register mixers, '
                'models or scores')


def import_modules(names: Sequence[str] | None) -> None:
    """Import modules by name.

    Raises:
        ValueError: A module is missing or its import fails; the message names it and the error.
    """
    for name in names or ():
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f'{name}.'.startswith(f'{error.name}.'):
                raise ValueError(f'--device-modules {name}: it needs the module {error.name}, which is not '
                                 'installed') from error
            raise ValueError(f'--device-modules {name}: no such module; install it, or name its folder in PYTHONPATH: '
                             f'PYTHONPATH=. python train.py --device-modules {name} ...') from error
        except Exception as error:  # a user module may raise any type
            reason = ' '.join(str(error).split())
            raise ValueError(f'--device-modules {name}: its import fails with {type(error).__name__}: {reason}'
                             ) from error
