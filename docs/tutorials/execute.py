"""Run the tutorials and write their pages: ``python docs/tutorials/execute.py [NAME ...]``; all by default.

A tutorial is a script in jupytext's percent format. Its page, NAME.md with pictures in NAME_files/, is what a notebook
of it shows after a run.
"""
from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TUTORIALS = sorted(path.stem for path in HERE.glob('*.py') if path.stem != 'execute')
# Lines of one output that a page shows at most, the first and the last ones.
_FIRST, _LAST = 4, 20
# What a terminal would overwrite or colour, and folders that differ from run to run.
_NOISE = re.compile(r'\x1b\[[0-9;]*m|[^\n]*\r(?!\n)')
_FOLDER = re.compile(r'/tmp/tmp\w+')


def executed(name: str) -> Any:
    """The notebook after a run in one thread, with this copy of the package and without a network."""
    import jupytext
    from nbconvert.preprocessors import ExecutePreprocessor

    notebook = jupytext.read(HERE / f'{name}.py')
    root = HERE.parents[1]
    os.environ |= {'OMP_NUM_THREADS': '1', 'MPLBACKEND': 'module://matplotlib_inline.backend_inline',
                   'PYTHONPATH': os.pathsep.join(filter(None, [str(root), os.environ.get('PYTHONPATH')])),
                   'HF_HUB_OFFLINE': '1', 'PYTHONWARNINGS': 'ignore'}
    ExecutePreprocessor(timeout=600, kernel_name='python3').preprocess(notebook, {'metadata': {'path': str(HERE)}})
    return notebook


def _one_stream(outputs: list[Any]) -> list[Any]:
    """Printed and logged lines as one output, before figures and values."""
    printed = [output for output in outputs if output.output_type == 'stream']
    if not printed:
        return outputs
    text = _FOLDER.sub('/tmp/DIR', _NOISE.sub('', ''.join(output.text for output in printed)))
    lines = text.splitlines()
    if len(lines) > _FIRST + _LAST:
        lines = [*lines[:_FIRST], '...', *lines[-_LAST:]]
    printed[0].text = '\n'.join(lines) + '\n'
    return [printed[0], *(output for output in outputs if output.output_type != 'stream')]


def write_page(name: str, notebook: Any) -> None:
    """NAME.md and NAME_files/ of an executed notebook."""
    from nbconvert import MarkdownExporter

    for cell in notebook.cells:
        if cell.cell_type == 'code':
            cell.outputs = _one_stream(cell.outputs)
        for output in cell.get('outputs', []):
            for kind, text in output.get('data', {}).items():
                if isinstance(text, str) and kind.startswith('text/'):
                    output['data'][kind] = _FOLDER.sub('/tmp/DIR', text)
    body, resources = MarkdownExporter().from_notebook_node(
        notebook, {'output_files_dir': f'{name}_files', 'unique_key': name})
    body = re.sub(r'(?:\n[ \t]*){4,}\n', '\n\n', body).replace('![png]', '![output]')
    shutil.rmtree(HERE / f'{name}_files', ignore_errors=True)
    for path, content in resources['outputs'].items():
        (HERE / path).parent.mkdir(exist_ok=True)
        (HERE / path).write_bytes(content)
    source = f'*Written by a run of `docs/tutorials/{name}.py`; `jupytext --to ipynb` makes a notebook of it.*\n'
    title, rest = body.strip().split('\n', 1)
    (HERE / f'{name}.md').write_text(f'{title}\n\n{source}{rest}\n')


def main(names: list[str]) -> None:
    """Run tutorials and write their pages."""
    if unknown := sorted(set(names) - set(TUTORIALS)):
        sys.exit(f'error: no tutorial {unknown[0]!r}; there are {", ".join(TUTORIALS)}')
    for name in names or TUTORIALS:
        write_page(name, executed(name))
        print(HERE / f'{name}.md')


if __name__ == '__main__':
    main(sys.argv[1:])
