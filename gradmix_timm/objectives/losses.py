"""Contrastive losses on unit features of several views: SimCLR, SupCon, their GradMix terms, and the joint loss."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ['JointConfig', 'instance_logits', 'joint_terms', 'ssl_loss', 'supcon_loss', 'weigh_terms']


@dataclass(frozen=True, slots=True)
class JointConfig:
    """Weights and temperatures of :func:`joint_terms`; the defaults are the authors' settings.

    Attributes:
        gamma: Weight of the supervised term, >= 0; 0 needs no labels.
        ssl_weight: Weight of the self-supervised and the mixed term together, >= 0.
        temperature: T, above 0.
        base_temperature: T0; every term is scaled by T / T0.
        authors_offset: Report the mixed term's value of the authors' code, which subtracts the row maxima of positives
            and denominator apart: larger by (T / T0) mean_i (max_j a_i . q_j / T - max_k S_ik), a constant whose
            gradient is zero.
    """

    gamma: float = 1.0
    ssl_weight: float = 1.0
    temperature: float = 0.05
    base_temperature: float = 0.07
    authors_offset: bool = False

    def __post_init__(self) -> None:
        _check_temperatures(self.temperature, self.base_temperature)
        if min(self.gamma, self.ssl_weight) < 0 or self.gamma + self.ssl_weight == 0:
            raise ValueError('gamma and ssl_weight are weights of 0 or more, not both 0, '
                             f'got {self.gamma} and {self.ssl_weight}')


def _check_temperatures(temperature: float, base_temperature: float) -> None:
    if not (temperature > 0 and base_temperature > 0):
        raise ValueError(f'temperatures are above 0, got temperature={temperature}, '
                         f'base_temperature={base_temperature}')


def _full(features: Tensor) -> Tensor:
    """float32 at least: at T = 0.05 a float16 softmax loses every pair with a cosine below 0.13, a bfloat16 one 1 %."""
    return features if features.dtype == torch.float64 else features.float()


class _Anchors:
    """Clean rows as anchors, their similarity to every clean row, and the logarithm of the denominator.

    Row ``image * V + view`` of the flattened features is a slot; an anchor never meets its own slot.

    Args:
        clean: Unit features, float [B, V, D].
        temperature: T.
        base_temperature: T0.
        rows: Images whose slots are anchors, int64 [b]; None for all.
    """

    def __init__(self, clean: Tensor, temperature: float, base_temperature: float, rows: Tensor | None) -> None:
        _check_temperatures(temperature, base_temperature)
        if clean.dim() != 3 or not clean.is_floating_point() or not clean.numel():
            raise ValueError(f'expected features float [B, views, D], got {clean.dtype} {list(clean.shape)}')
        batch, views, _ = clean.shape
        self.temperature, self.scale, self.shape = temperature, temperature / base_temperature, clean.shape
        slots = torch.arange(batch * views, device=clean.device).view(batch, views)
        flat = _full(clean).flatten(0, 1)
        chosen = slots if rows is None else slots[rows]
        self.anchors = flat if rows is None else flat[chosen.flatten()]
        self.image = torch.arange(batch, device=clean.device).repeat_interleave(views)
        self.own_image = self.image[chosen.flatten()]
        self.own_slot = chosen.flatten()[:, None] == slots.flatten()
        self.clean = self.similarity(flat)
        # A huge negative, not -inf: the sum of a lone row is empty, and its logarithm is to stay finite.
        self.log_sum = self.clean.masked_fill(self.own_slot, torch.finfo(flat.dtype).min).logsumexp(1)

    def similarity(self, contrast: Tensor) -> Tensor:
        """a_i . q_j / T, [anchors, slots]."""
        return self.anchors @ contrast.T / self.temperature

    def mixed(self, mixed: Tensor) -> Tensor:
        """The same to the features of the mixed views, laid out as the clean ones."""
        if mixed.shape != self.shape:
            raise ValueError(f'expected mixed features like the clean ones, {list(self.shape)}, '
                             f'got {list(mixed.shape)}')
        return self.similarity(mixed.flatten(0, 1).to(self.anchors.dtype))

    def same_image(self) -> Tensor:
        """Positives of the self-supervised terms: the other views of the anchor's image, bool [anchors, slots]."""
        if self.shape[1] < 2:
            raise ValueError('self-supervised terms need two views or more of every image, '
                             f'got features {list(self.shape)}')
        return (self.own_image[:, None] == self.image) & ~self.own_slot

    def same_class(self, labels: Tensor) -> Tensor:
        """Positives of the supervised terms: every other slot of the anchor's class, bool [anchors, slots]."""
        if labels.shape != self.shape[:1] or labels.is_floating_point():
            raise ValueError(f'expected labels int64 [{self.shape[0]}], one an image, '
                             f'got {labels.dtype} {list(labels.shape)}')
        return (labels[self.own_image][:, None] == labels[self.image]) & ~self.own_slot

    def mean(self, similarity: Tensor, positives: Tensor, weight: Tensor | float = 1.0, offset: bool = False) -> Tensor:
        """T / T0 times the mean over anchors of log_sum - mean over positives; anchors without a positive left out."""
        count = positives.sum(1)
        terms = self.log_sum - torch.where(positives, similarity, 0).sum(1) / count.clamp_min(1)
        if offset:
            terms = terms + (similarity.amax(1) - self.clean.amax(1)).detach()
        if isinstance(weight, Tensor):
            weight = weight.to(terms)
            weight = weight[self.own_image] if weight.dim() else weight
        usable = count > 0
        return self.scale * torch.where(usable, weight * terms, 0).sum() / usable.sum().clamp_min(1)


def ssl_loss(
        clean: Tensor,
        temperature: float = 0.05,
        base_temperature: float = 0.07,
        rows: Tensor | None = None,
) -> Tensor:
    """Self-supervised contrastive loss (SimCLR, arXiv:2002.05709): the other view of the same image is the positive.

    With all slots as anchors a_i and S_ij = a_i . a_j / T::

        L = -(T / T0) mean_i mean_{j in P(i)} [ S_ij - log sum_{k != i} exp S_ik ]

    Computed in float32 (float64 stays), under autocast too.

    Args:
        clean: Unit features of V >= 2 views, float [B, V, D]; from one process, or gathered from several.
        temperature: T.
        base_temperature: T0, a constant scale (the code of SupCon divides by 0.07).
        rows: Images whose slots are the anchors, int64 [b]: with gathered features, those of this process. Where every
            anchor has a positive, the mean of the losses over equal shares is the loss of the whole. Default: all.

    Returns:
        A scalar, at least float32.

    Raises:
        ValueError: Another shape, fewer than two views, a temperature of 0 or less.

    Example:
        >>> views = torch.tensor([[[1., 0.], [1., 0.]], [[0., 1.], [0., 1.]]])
        >>> ssl_loss(views, temperature=1., base_temperature=1.)  # log(e + 1 + 1) - 1
        tensor(0.5514)
    """
    with torch.autocast(clean.device.type, enabled=False):
        anchors = _Anchors(clean, temperature, base_temperature, rows)
        return anchors.mean(anchors.clean, anchors.same_image())


def supcon_loss(
        clean: Tensor,
        labels: Tensor,
        temperature: float = 0.05,
        base_temperature: float = 0.07,
        rows: Tensor | None = None,
) -> Tensor:
    """Supervised contrastive loss (SupCon, arXiv:2004.11362, L_out): every other slot of the class is a positive.

    The formula of :func:`ssl_loss` with P(i) the class of i without slot i. An anchor without a positive (one view, a
    class with one image) is left out of the mean, where the usual code (SupContrast) counts it as 0 and, in older
    versions, divides zero by zero; if no anchor has one, the loss is 0.

    Args:
        clean: Unit features, float [B, V, D], V >= 1.
        labels: int64 [B].
        temperature: T.
        base_temperature: T0.
        rows: See :func:`ssl_loss`.

    Returns:
        A scalar, at least float32.

    Raises:
        ValueError: Another shape, a temperature of 0 or less.

    Example:
        >>> rows = torch.tensor([[[1., 0.]], [[1., 0.]], [[0., 1.]]])
        >>> supcon_loss(rows, torch.tensor([0, 0, 1]), temperature=1., base_temperature=1.)  # log(e + 1) - 1
        tensor(0.3133)
    """
    with torch.autocast(clean.device.type, enabled=False):
        anchors = _Anchors(clean, temperature, base_temperature, rows)
        return anchors.mean(anchors.clean, anchors.same_class(labels))


def joint_terms(
        clean: Tensor,
        mixed: Tensor | None,
        labels: Tensor | None,
        lam: Tensor | float = 1.0,
        config: JointConfig | None = None,
        rows: Tensor | None = None,
) -> dict[str, Tensor]:
    """The terms of the authors' training loss gamma * L_sup + ssl_weight * (L_ssl + lam * L_mix), before their weights.

    L_sup is :func:`supcon_loss`, L_ssl :func:`ssl_loss`. L_mix (arXiv:2505.12803) pulls a clean anchor to the mixed
    other view: with q the mixed features, the positives are a_i . q_j / T for the other slots j of the image; the
    denominator stays that of L_ssl, clean against clean, so that mixed features are positives only, never negatives.
    One similarity matrix serves all three terms. gamma = 0 is self-supervised GradMix; without ``mixed`` it is the
    unmixed baseline SupCon + SimCLR.

    Args:
        clean: Unit features, float [B, V, D], V >= 2.
        mixed: Unit features of the mixed views in the same layout, or None.
        labels: int64 [B]; None only with gamma = 0.
        lam: Kept share of the mixed images: one for the batch, or [B] to weight each image's anchors.
        config: Weights and temperatures.
        rows: See :func:`ssl_loss`.

    Returns:
        Scalars, at least float32: 'sup' where gamma > 0; 'ssl' and, with ``mixed``, 'mix' (its lam included) where
        ssl_weight > 0.

    Raises:
        ValueError: Another shape, fewer than two views, labels missing, a temperature of 0 or less.
    """
    config = config or JointConfig()
    terms: dict[str, Tensor] = {}
    with torch.autocast(clean.device.type, enabled=False):
        anchors = _Anchors(clean, config.temperature, config.base_temperature, rows)
        if config.gamma:
            if labels is None:
                raise ValueError(f'gamma={config.gamma} weights a supervised term, which needs labels; '
                                 'give labels or set gamma=0')
            terms['sup'] = anchors.mean(anchors.clean, anchors.same_class(labels))
        if config.ssl_weight:
            positives = anchors.same_image()
            terms['ssl'] = anchors.mean(anchors.clean, positives)
            if mixed is not None:
                terms['mix'] = anchors.mean(anchors.mixed(mixed), positives, lam, config.authors_offset)
    return terms


def weigh_terms(terms: Mapping[str, Tensor], config: JointConfig) -> Tensor:
    """The weighted sum gamma * sup + ssl_weight * (ssl + mix), of the terms that are there."""
    weights = {'sup': config.gamma, 'ssl': config.ssl_weight, 'mix': config.ssl_weight}
    return torch.stack([weights[name] * term for name, term in terms.items()]).sum()


def instance_logits(clean: Tensor, temperature: float = 0.05, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The self-supervised loss as a classifier of slots: logits, and the slot of each anchor's other view.

    Cross-entropy of the two is :func:`ssl_loss` without T / T0, anchor by anchor; so every score of the attribution
    (log-odds, logit, loss) has its meaning without a class.

    Args:
        clean: Unit features of two views, float [B, 2, D].
        temperature: T.
        rows: See :func:`ssl_loss`.

    Returns:
        S_ij, [anchors, 2 B], -inf at the anchor's own slot; labels int64 [anchors].

    Raises:
        ValueError: Another shape, other than two views.
    """
    with torch.autocast(clean.device.type, enabled=False):
        anchors = _Anchors(clean, temperature, temperature, rows)
        if clean.shape[1] != 2:
            raise ValueError(f'an anchor has one other view where there are two, got features {list(clean.shape)}')
        return anchors.clean.masked_fill(anchors.own_slot, -torch.inf), anchors.same_image().int().argmax(1)
