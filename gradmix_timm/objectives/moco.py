"""MoCo: a query encoder that trains, a key encoder that follows it slowly, and a queue of keys as negatives."""
from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from .contrastive import ATTRIBUTION_TEMPERATURE, ContrastiveTask
from .gather import gather_rows, own_rows, shuffle_rows, world_size

__all__ = ['KeyQueue', 'MocoTask', 'follow', 'key_logits']


def key_logits(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Similarity of each query to its own key, then to every queued one, over T, float32 [B, 1 + K].

    Cross-entropy with label 0 is InfoNCE (MoCo, arXiv:1911.05722, eq. 1).

    Args:
        query: Unit rows, float [B, P].
        key: Of another view of the same images, [B, P].
        queue: Keys of earlier batches, [K, P].
        temperature: T.

    Example:
        >>> one, other = torch.tensor([[1., 0.]]), torch.tensor([[0., 1.]])
        >>> key_logits(one, one, other, temperature=0.5)
        tensor([[2., 0.]])
    """
    with torch.autocast(query.device.type, enabled=False):
        query, key, queue = query.float(), key.float(), queue.float()
        return torch.cat([(query * key).sum(1, keepdim=True), query @ queue.T], 1) / temperature


@torch.no_grad()
def follow(slow: nn.Module, fast: nn.Module, momentum: float) -> None:
    """In place, slow <- momentum * slow + (1 - momentum) * fast, weight by weight; buffers stay as they are.

    Args:
        slow: A copy of ``fast``.
        fast: The module that trains.
        momentum: In [0, 1].
    """
    for kept, new in zip(slow.parameters(), fast.parameters(), strict=True):
        kept.mul_(momentum).add_(new, alpha=1 - momentum)


class KeyQueue(nn.Module):
    """The newest K keys, the oldest replaced first.

    Args:
        size: K.
        dim: P.
        seed: Of the random unit rows that it starts with: the same in every process.

    Attributes:
        keys: Unit rows, float32 [K, P].
        place: Position of the next key, int64 [].
    """

    keys: Tensor
    place: Tensor

    def __init__(self, size: int, dim: int, seed: int = 0) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f'a queue holds 1 key or more, got {size}')
        rows = torch.randn(size, dim, generator=torch.Generator().manual_seed(seed))
        self.register_buffer('keys', F.normalize(rows, dim=1))
        self.register_buffer('place', torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def push(self, keys: Tensor) -> None:
        """Enter keys [n, P] in order; the oldest n leave.

        Raises:
            ValueError: More keys than places.
        """
        size, count = len(self.keys), len(keys)
        if count > size:
            raise ValueError(f'{count} keys a step do not fit a queue of {size}; type a larger --objective-queue or a '
                             'smaller --batch-size')
        places = (self.place + torch.arange(count, device=self.keys.device)) % size
        self.keys.index_copy_(0, places, keys.to(self.keys.dtype))
        self.place.copy_((self.place + count) % size)


class MocoTask(ContrastiveTask):
    """InfoNCE(q, k) + lam * InfoNCE(q of the mixed view, k), negatives from a queue; no labels.

    The query is view 1 and, mixed, view 1 again; the key is view 2 under the key encoder, a copy whose weights follow
    by :meth:`update_ema`, which training loops of timm's kind call after every update. Its BatchNorm uses the
    statistics of its own batches. With several processes their keys join the queue in the order of the ranks; where
    BatchNorm would take statistics of the same images for a query and its key, which give the key away, each process
    encodes keys of images of all of them (shuffling BN, arXiv:1911.05722, 3.3). A single process does not shuffle.

    A step costs 2 F + 4 F on B images and F for the keys, and p F for the maps.

    Args:
        model: timm's classifier.
        mixer: See :class:`ContrastiveTask`.
        queue: Keys kept, K.
        momentum: Of the key encoder, in [0, 1].
        **options: See :class:`ContrastiveTask`.

    Raises:
        ValueError: A number out of range.
    """

    def __init__(self, model: nn.Module, mixer: Any = None, *, queue: int = 4096, momentum: float = 0.999,
                 **options: Any) -> None:
        super().__init__(model, mixer, **options)
        if not 0 <= momentum <= 1:
            raise ValueError(f'the momentum of the key encoder is in [0, 1], got {momentum}')
        self.momentum = float(momentum)
        self.key_module: nn.Module = copy.deepcopy(self._projected()).requires_grad_(False).train()
        self.queue = KeyQueue(queue, self.dim).to(self.device)
        # Synchronised norms already use the statistics of all images.
        self.shuffles = any(isinstance(module, nn.modules.batchnorm._BatchNorm)
                            and not isinstance(module, nn.SyncBatchNorm) for module in self.key_module.modules())

    # ---- timm's contract

    def prepare_distributed(self, device_ids: list | None = None, **options: Any) -> MocoTask:
        """Wrap the trained module, and broadcast the first process's key encoder and queue, as DDP does weights."""
        super().prepare_distributed(device_ids, **options)
        for tensor in (*self.key_module.state_dict().values(), *self.queue.state_dict().values()):
            distributed.broadcast(tensor, 0)
        return self

    def update_ema(self, step: int | None = None) -> None:
        """After an update of the weights: the key encoder follows, and the moving average if there is one."""
        super().update_ema(step=step)
        follow(self.key_module, self._projected(), self.momentum)

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        """The projection head, the key encoder and the queue."""
        state = super().get_task_state(module, ema)
        if not ema:
            state.update(key_encoder=self.key_module.state_dict(), queue=self.queue.state_dict())
        return state

    def load_task_state(self, state: dict[str, Any] | None, strict: bool = True, module: nn.Module | None = None,
                        ema: bool = False) -> None:
        """Load the state of :meth:`get_task_state`.

        Raises:
            ValueError: It has no key encoder, or a queue of another size.
        """
        super().load_task_state(state, strict, module, ema)
        if ema or not state:
            return
        if 'key_encoder' not in state:
            raise ValueError('the checkpoint holds no key encoder: it is of another objective than moco')
        if state['queue']['keys'].shape != self.queue.keys.shape:
            raise ValueError(f'the checkpoint holds a queue of {len(state["queue"]["keys"])} keys and this run has '
                             f'{len(self.queue.keys)}; type --objective-queue {len(state["queue"]["keys"])}')
        self.key_module.load_state_dict(state['key_encoder'], strict=strict)
        self.queue.load_state_dict(state['queue'])

    # ---- the step

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Any]:
        """Losses of one batch; the queue takes its keys.

        Args:
            input: [2 B, C, H, W], view 1 of every image, then view 2.
            target: Not read.

        Returns:
            'loss'; 'loss_ssl', 'loss_mix' (lam included), as far as they are there; 'output', the queries float32
            [B, P]; 'draw', where there is a mix.
        """
        view, other = input[:self._split(input)], input[self._split(input):]
        with self._watched(view) as seen:
            query = self.trainable_module(view)
        key, keys = self._keys(other)
        queue = self.queue.keys.clone()  # the graph holds it while new keys go in
        result: dict[str, Any] = {'output': query.detach()}
        loss = self._info_nce(query, key, queue).mean()
        result['loss_ssl'] = loss.detach()
        if self._mixing:
            captured = None
            if seen is not None:
                logits = key_logits(query, key, queue, ATTRIBUTION_TEMPERATURE)
                captured = self._captured(seen, logits, self._own_key(query), view)
            draw = self._draw(view, captured)
            mixed = self._again(self.trainable_module, self._paste(view, draw))
            mix = (draw.lam * self._info_nce(mixed, key, queue)).mean()
            loss, result['loss_mix'], result['draw'] = loss + mix, mix.detach(), draw
        elif self._mixable:
            result['loss_mix'] = torch.zeros_like(loss)
        self.queue.push(keys)
        return {'loss': loss, **result}

    @torch.no_grad()
    def _keys(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Keys of these images, [B, P], and of those of all processes in the order of the ranks."""
        if world_size() == 1 or not self.shuffles:
            key = self.key_module(images)
            return key, gather_rows(key)
        share, order = shuffle_rows(images)
        keys = gather_rows(self.key_module(share))[order.argsort()]
        return keys[own_rows(len(images), images.device)], keys

    def _info_nce(self, query: Tensor, key: Tensor, queue: Tensor) -> Tensor:
        """InfoNCE of every query, float32 [B]."""
        logits = key_logits(query, key, queue, self.temperature)
        with torch.autocast(query.device.type, enabled=False):
            return F.cross_entropy(logits, self._own_key(query), reduction='none')

    @staticmethod
    def _own_key(query: Tensor) -> Tensor:
        return torch.zeros(len(query), dtype=torch.int64, device=query.device)
