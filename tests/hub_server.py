"""A stand-in for the Hugging Face Hub: repositories in memory behind the paths of its API that the client asks for."""
from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

TOKEN = 'hf_writer'


class Hub(ThreadingHTTPServer):
    """``repos``: name to branch or commit to its files by name; ``asked``: every request's method and path."""

    def __init__(self) -> None:
        super().__init__(('127.0.0.1', 0), _Handler)
        self.repos: dict[str, dict[str, dict[str, bytes]]] = {}
        self.asked: list[str] = []
        self.url = f'http://127.0.0.1:{self.server_port}'

    def commit(self, repo: str, files: dict[str, bytes], revision: str = 'main') -> str:
        revisions = self.repos.setdefault(repo, {'main': {}})
        content = {**revisions[revision], **files}
        name = hashlib.sha1(repr(sorted(content.items())).encode()).hexdigest()
        revisions[revision] = revisions[name] = content
        return name


class _Handler(BaseHTTPRequestHandler):
    server: Any

    def log_message(self, *_: Any) -> None:
        """Not into the tests' output."""

    def answer(self, status: int, content: Any = b'', **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {'Content-Length': str(len(body)), **headers}.items():
            self.send_header(name.replace('_', '-'), value)
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        """A file's metadata, or its content: /ORG/NAME/resolve/REVISION/FILE."""
        self.server.asked.append(f'{self.command} {self.path}')
        repo, _, place = self.path.removeprefix('/').partition('/resolve/')
        revision, _, name = place.partition('/')
        if repo not in self.server.repos:
            return self.answer(404, X_Error_Code='RepoNotFound', X_Error_Message='Repository not found')
        if revision not in self.server.repos[repo]:
            return self.answer(404, X_Error_Code='RevisionNotFound', X_Error_Message='Invalid rev id')
        files = self.server.repos[repo][revision]
        commit = next(key for key, value in self.server.repos[repo].items() if value == files and len(key) == 40)
        if name not in files:
            return self.answer(404, X_Error_Code='EntryNotFound', X_Repo_Commit=commit)
        return self.answer(200, files[name], ETag=f'"{hashlib.sha1(files[name]).hexdigest()}"', X_Repo_Commit=commit)

    do_GET = do_HEAD

    def do_POST(self) -> None:
        """A repository is created, a card validated, an upload announced and committed."""
        self.server.asked.append(f'{self.command} {self.path}')
        body = self.read()
        if self.path == '/api/validate-yaml':
            return self.answer(200, {'errors': [], 'warnings': []})
        if self.headers.get('Authorization') != f'Bearer {TOKEN}':
            return self.answer(401, {'error': 'Invalid username or password.'})
        if self.path == '/api/repos/create':
            asked = json.loads(body)
            repo = f'{asked["organization"]}/{asked["name"]}'
            known = repo in self.server.repos
            if not known:
                self.server.commit(repo, {})
            return self.answer(409 if known else 200, {'url': f'{self.server.url}/{repo}'})
        repo, _, step = self.path.removeprefix('/api/models/').partition('/preupload/')
        if step:
            if step not in self.server.repos[repo]:
                return self.answer(404, X_Error_Code='RevisionNotFound')
            return self.answer(200, {'files': [{'path': file['path'], 'uploadMode': 'regular', 'shouldIgnore': False}
                                               for file in json.loads(body)['files']]})
        repo, _, revision = repo.partition('/commit/')
        lines = [json.loads(line) for line in body.splitlines()]
        name = self.server.commit(repo, {
            line['value']['path']: base64.b64decode(line['value']['content']) for line in lines if line['key'] == 'file'
        }, revision)
        return self.answer(200, {'commitUrl': f'{self.server.url}/{repo}/commit/{name}', 'commitOid': name,
                                 'success': True})

    def read(self) -> bytes:
        if self.headers.get('Transfer-Encoding') != 'chunked':
            return self.rfile.read(int(self.headers.get('Content-Length', 0)))
        body = b''
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body


@contextmanager
def serving() -> Iterator[Hub]:
    hub = Hub()
    thread = Thread(target=hub.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
