"""What the outer minimisation minimises. Logits are float32 (n, classes), labels int64 (n,), losses means over n."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["cross_entropy", "distillation", "divergence", "trades"]

_ADVERSARIAL_SHARE = 5 / 6  # Zi et al. (2021), section 4.1


def cross_entropy(adversarial: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy on adversarial images (Madry et al. 2018)."""
    return F.cross_entropy(adversarial, labels)


def trades(clean: Tensor, adversarial: Tensor, labels: Tensor, beta: float) -> Tensor:
    """Cross-entropy on clean images plus `beta` KL(clean || adversarial) (Zhang et al. 2019); gradients flow through
    both predictions."""
    return F.cross_entropy(clean, labels) + beta * divergence(F.softmax(clean, 1), adversarial)


def distillation(clean: Tensor, adversarial: Tensor, teacher: Tensor) -> Tensor:
    """Robust soft label adversarial distillation (Zi et al. 2021): 5/6 KL(teacher || adversarial) + 1/6 KL(teacher ||
    clean), `teacher` being a robust network's logits for the clean images. Labels play no part."""
    soft = F.softmax(teacher, 1)
    share = _ADVERSARIAL_SHARE
    return share * divergence(soft, adversarial) + (1 - share) * divergence(soft, clean)


def divergence(probabilities: Tensor, logits: Tensor) -> Tensor:
    """KL(probabilities || softmax(logits)), the mean over the batch."""
    return F.kl_div(F.log_softmax(logits, 1), probabilities, reduction="batchmean")
