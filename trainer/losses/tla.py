"""Token-level logits alignment (TLA): a divergence between the teacher's softened distribution and the student's.

``tla_`` returns the loss of each row *and its gradient*, and may overwrite the logits: it is called on chunks of rows
whose logits are not used again (``lean``). For KL(teacher ‖ student), the default, both are in closed form and take a
few passes over the chunk; the other divergences, for comparison with other systems, use autograd.

The factor T² keeps gradients comparable across temperatures (Hinton et al. 2015, arXiv:1503.02531, section 2.1).

Trade-off: the student's bucket is summed over the complement of the listed tokens instead of computed as 1 - (listed
mass), which has no correct digit left in float32 once the student is confident.

Shape letters: N rows, V student vocabulary, U teacher vocabulary, K listed entries, C outcomes.
"""

from collections.abc import Callable

import torch

from schemas.cache_config import CaptureConfig
from schemas.train_config import Divergence, TlaConfig
from trainer.losses.class_loss import in_classes
from trainer.losses.loss import HeadLoss, LossOfChunk, Pair
from trainer.losses.target_form import make_target, said_of_target, signals_of, target_form
from trainer.losses.targets import DenseTarget, ListedTarget, MixedTarget, OneForm, Target
from trainer.losses.teacher_rows import TeacherRows

WORDS = {
    "forward": "KL(teacher ‖ student)",
    "reverse": "KL(student ‖ teacher)",
    "jsd": "the Jensen-Shannon divergence",
}


class Tla(HeadLoss[TlaConfig]):
    """A divergence of softened distributions; the settings name the target form, or the cache's best one is used."""

    def __init__(self, settings: TlaConfig, capture: CaptureConfig) -> None:
        super().__init__(settings, capture)
        self.form = self.target = target_form(settings, capture)
        self.signals = signals_of(self.form, capture)

    def title(self) -> str:
        """Divergence, temperature and target form, for the model card."""
        settings = self.settings
        return (
            f"TLA, {WORDS[settings.divergence]} at temperature {settings.temperature}, from the cache's `{self.form}` "
            "target"
        )

    def note(self) -> str:
        """The target form."""
        return said_of_target(self.settings, self.form)

    def target_of(self, rows: TeacherRows, vocabulary: int) -> Target:
        """Target of these rows, for a student of ``vocabulary`` tokens."""
        settings = self.settings
        return make_target(self.form, rows, self.capture, settings.temperature, vocabulary, settings.tail)

    def of_rows(self, rows: TeacherRows, vocabulary: int) -> LossOfChunk:
        """``tla_`` against the rows' target, over classes of tokens where the rows are in classes."""
        settings, target = self.settings, self.target_of(rows, vocabulary)

        def of_chunk(logits_nV: torch.Tensor, chunk: slice) -> Pair:
            return tla_(logits_nV, target.rows(chunk), settings.temperature, settings.divergence, settings.jsd_beta)

        return in_classes(of_chunk, rows, settings.temperature)


def tla_(
    logits_NV: torch.Tensor, target: Target, temperature: float, divergence: Divergence = "forward", beta: float = 0.5
) -> Pair:
    """Each row's divergence times temperature², nats [N], and the gradient of their sum w.r.t. the logits, [N, V].

    logits_NV: the student's, float32 or float64; overwritten. Both results are finite for finite logits.

    - ``forward``: KL(teacher ‖ student).
    - ``reverse``: KL(student ‖ teacher).
    - ``jsd``: β KL(teacher ‖ m) + (1 - β) KL(student ‖ m) with m = β teacher + (1 - β) student, the generalised
      Jensen-Shannon divergence of Agarwal et al. 2024 (arXiv:2306.13649).

    ``reverse`` and ``jsd`` compare both models over the same outcomes: listed tokens and bucket; without a bucket, the
    listed tokens, both sides normalised over them; for a dense target, the tokens that both models have.
    """
    if isinstance(target, MixedTarget):
        return _kind_by_kind_(logits_NV, target, temperature, divergence, beta)
    if divergence == "forward":
        if isinstance(target, ListedTarget):
            return _listed_forward_(logits_NV, target, temperature)
        if target.token_map is not None:
            return _mapped_forward_(logits_NV, target, temperature, ~target.token_map.named_V)
        return _dense_forward_(logits_NV, target, temperature)
    leaf_NV = logits_NV.detach().requires_grad_()
    with torch.enable_grad():
        log_p_NC, log_q_NC = _outcomes(leaf_NV / temperature, target)
        per_row_N = DIVERGENCES[divergence](log_p_NC, log_q_NC, beta) * temperature**2
        (gradient_NV,) = torch.autograd.grad(per_row_N.sum(), leaf_NV)
    return per_row_N.detach(), gradient_NV


def _kind_by_kind_(
    logits_NV: torch.Tensor, target: MixedTarget, temperature: float, divergence: Divergence, beta: float
) -> Pair:
    """``tla_`` of the rows of each kind; their gradient takes the place of their logits."""
    per_row_N = logits_NV.new_zeros(len(logits_NV))
    for rows_n, part in target.parts():
        own_n = rows_n.to(logits_NV.device)
        per_row_N[own_n], logits_NV[own_n] = tla_(logits_NV[own_n], part, temperature, divergence, beta)
    return per_row_N, logits_NV


def _listed_forward_(logits_NV: torch.Tensor, target: ListedTarget, temperature: float) -> Pair:
    """With q the student's softmax and m the target's total mass, the gradient is T (m q - w) on listed tokens.

    On all others it is T q (m - w_rest / q_rest), which is 0 where the student's bucket has the teacher's mass.
    """
    ids_NK, listed_NK, weights_NK = target.ids_NK, target.listed_NK, target.weights_NK.to(logits_NV.dtype)
    z_NV = logits_NV.div_(temperature) if temperature != 1 else logits_NV
    z_NV -= z_NV.amax(dim=1, keepdim=True)
    z_NK = z_NV.gather(1, ids_NK)
    exp_NV = z_NV.exp_()
    total_N1 = exp_NV.sum(dim=1, keepdim=True)
    mass_N1 = weights_NK.sum(dim=1, keepdim=True)
    kl_N = -target.entropy_N.to(logits_NV.dtype) - (weights_NK * (z_NK - total_N1.log())).sum(dim=1)
    if target.rest_N is None:
        gradient_NV = exp_NV.mul_(mass_N1 / total_N1).scatter_add_(1, ids_NK, -weights_NK)
        return kl_N * temperature**2, gradient_NV.mul_(temperature)

    rest_N1 = target.rest_N.to(logits_NV.dtype)[:, None]
    exp_NK = exp_NV.gather(1, ids_NK)
    nothing_listed_N1 = ~listed_NK.any(dim=1, keepdim=True)
    exp_NV.scatter_(1, ids_NK, exp_NK * nothing_listed_N1)
    outside_N1 = exp_NV.sum(dim=1, keepdim=True).clamp(min=torch.finfo(exp_NV.dtype).tiny)
    kl_N -= (rest_N1 * (outside_N1.log() - total_N1.log())).squeeze(1)
    mass_N1 = mass_N1 + rest_N1
    gradient_NV = exp_NV.mul_(mass_N1 / total_N1 - rest_N1 / outside_N1)
    gradient_NV.scatter_add_(1, ids_NK, exp_NK * listed_NK * (mass_N1 / total_N1) - weights_NK)
    return kl_N * temperature**2, gradient_NV.mul_(temperature)


def _dense_forward_(logits_NV: torch.Tensor, target: DenseTarget, temperature: float) -> Pair:
    """The gradient is T (m q - p); m, the teacher's mass on the student's tokens, is below 1 where it lacks some."""
    log_p_NU = target.log_probs().to(logits_NV.dtype)
    both = min(log_p_NU.shape[1], logits_NV.shape[1])
    log_q_NV = (logits_NV.div_(temperature) if temperature != 1 else logits_NV).log_softmax(dim=1)
    p_NB = log_p_NU[:, :both].exp()
    kl_N = torch.linalg.vecdot(p_NB, log_p_NU[:, :both].clamp_(min=-1e30).sub_(log_q_NV[:, :both]))
    gradient_NV = log_q_NV.exp_().mul_(p_NB.sum(dim=1, keepdim=True))
    gradient_NV[:, :both] -= p_NB
    return kl_N * temperature**2, gradient_NV.mul_(temperature)


def _mapped_forward_(logits_NV: torch.Tensor, target: DenseTarget, temperature: float, others_V: torch.Tensor) -> Pair:
    """As ``_listed_forward_`` with all named tokens listed, and the others as the bucket."""
    p_NV, rest_N = (part.to(logits_NV.dtype) for part in target.mapped())
    log_q_NV = (logits_NV.div_(temperature) if temperature != 1 else logits_NV).log_softmax(dim=1)
    kl_N = torch.linalg.vecdot(p_NV, p_NV.log().clamp_(min=-1e30).sub_(log_q_NV))
    q_NV = log_q_NV.exp_()
    outside_N = (q_NV * others_V).sum(dim=1).clamp(min=torch.finfo(q_NV.dtype).tiny)
    kl_N -= torch.special.entr(rest_N) + rest_N * outside_N.log()
    mass_N1 = (p_NV.sum(dim=1) + rest_N)[:, None]
    gradient_NV = q_NV.mul_(mass_N1 - (rest_N / outside_N)[:, None] * others_V).sub_(p_NV)
    return kl_N * temperature**2, gradient_NV.mul_(temperature)


def _outcomes(z_NV: torch.Tensor, target: OneForm) -> Pair:
    """Log-probabilities of teacher and student over the same C outcomes; z: the student's logits over temperature."""
    if isinstance(target, DenseTarget) and target.token_map is not None:
        target = target.listed()
    if isinstance(target, DenseTarget):
        log_p_NU = target.log_probs().to(z_NV.dtype)
        both = min(log_p_NU.shape[1], z_NV.shape[1])
        return log_p_NU[:, :both].log_softmax(dim=1), z_NV[:, :both].log_softmax(dim=1)
    listed_NK = target.listed_NK
    log_p_NK = target.weights_NK.to(z_NV.dtype).log()
    if target.rest_N is None:
        log_q_NK = z_NV.gather(1, target.ids_NK).masked_fill(~listed_NK, -torch.inf)
        return _log_normalised(log_p_NK), _log_normalised(log_q_NK)
    rest_N = target.rest_N.to(z_NV.dtype)
    log_q_NV = z_NV.log_softmax(dim=1)
    log_q_NK = log_q_NV.gather(1, target.ids_NK).masked_fill(~listed_NK, -torch.inf)
    marks_NV = torch.zeros_like(z_NV, dtype=torch.uint8)
    marks_NV.scatter_reduce_(1, target.ids_NK, listed_NK.to(torch.uint8), "amax")
    outside_NV = log_q_NV.masked_fill(marks_NV.bool(), torch.finfo(z_NV.dtype).min)
    log_q_NC = torch.cat([log_q_NK, torch.logsumexp(outside_NV, dim=1, keepdim=True)], dim=1)
    least = torch.finfo(z_NV.dtype).tiny  # a bucket of probability 0 still penalises the student's mass there
    return torch.cat([log_p_NK, rest_N.clamp(min=least).log()[:, None]], dim=1), log_q_NC


def _log_normalised(log_NC: torch.Tensor) -> torch.Tensor:
    return log_NC - torch.logsumexp(log_NC, dim=1, keepdim=True)


def kl(log_p_NC: torch.Tensor, log_q_NC: torch.Tensor) -> torch.Tensor:
    """KL(p ‖ q), nats [N]; outcomes of probability 0 on both sides are padding."""
    present_NC = log_p_NC > -torch.inf
    difference_NC = log_p_NC.masked_fill(~present_NC, 0) - log_q_NC.masked_fill(~present_NC, 0)
    return (log_p_NC.exp() * difference_NC).sum(dim=1)


def _reverse(log_p_NC: torch.Tensor, log_q_NC: torch.Tensor, _beta: float) -> torch.Tensor:
    return kl(log_q_NC, log_p_NC)


def _jsd(log_p_NC: torch.Tensor, log_q_NC: torch.Tensor, beta: float) -> torch.Tensor:
    """Computed from log m by logaddexp, without subtracting probabilities."""
    present_NC = (log_p_NC > -torch.inf) | (log_q_NC > -torch.inf)
    log_p_NC, log_q_NC = log_p_NC.clamp(min=-1e4), log_q_NC.clamp(min=-1e4)
    weight = torch.tensor(beta, dtype=log_p_NC.dtype, device=log_p_NC.device)
    log_m_NC = torch.logaddexp(log_p_NC + weight.log(), log_q_NC + (-weight).log1p())
    by_teacher_NC = log_p_NC.exp() * (log_p_NC - log_m_NC)
    by_student_NC = log_q_NC.exp() * (log_q_NC - log_m_NC)
    return ((beta * by_teacher_NC + (1 - beta) * by_student_NC) * present_NC).sum(dim=1)


DIVERGENCES: dict[str, Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]] = {"reverse": _reverse, "jsd": _jsd}
