"""What two teachers differ in, as rows of a table: the figures of ``cache-tools compare``."""

from collections.abc import Callable
from typing import Any

from schemas.teachers_compared import TeacherFigures, TeachersCompared
from teacher_cache.pages.page_text import shown_text

OF_EACH: tuple[tuple[str, Callable[[TeacherFigures], str]], ...] = (
    ("entropy, nats", lambda teacher: f"{teacher.entropy.mean:.4f}"),
    ("effective support, tokens", lambda teacher: f"{teacher.effective_support:,.1f}"),
    ("probability of the most likely token", lambda teacher: f"{teacher.top1_mass:.1%}"),
    ("probability of decorative tokens", lambda teacher: f"{teacher.decorative_mass:.3%}"),
    ("perplexity of the texts", lambda teacher: f"{teacher.perplexity:,.2f}"),
)


def teachers_table(compared: TeachersCompared) -> dict[str, Any]:
    """Names, rows of both, and facts on the pair."""
    found = compared.overall
    error = found.entropy_b_minus_a.standard_error
    of_both = [
        ("B − A: entropy, nats", f"{found.entropy_b_minus_a.mean:+.4f}".replace("-", "−")),
        ("standard error, over samples", "unknown" if error is None else f"{error:.4f}"),
        ("most likely token the same", f"{found.top1_agreement:.1%}"),
        ("KL(A ‖ B), nats, at least", f"{found.kl_a_b.mean:.4f}"),
        ("KL(B ‖ A), nats, at least", f"{found.kl_b_a.mean:.4f}"),
        ("decorative tokens in the texts", f"{found.decorative_share:.3%}"),
    ]
    return {
        "names": [shown_text(compared.a.teacher), shown_text(compared.b.teacher)],
        "rows": [(title, cell(found.a), cell(found.b)) for title, cell in OF_EACH],
        "facts": of_both,
        "about": f"{found.samples:,} samples, {found.rows:,} rows; entropy "
        + ("exact" if compared.entropy_is_exact else "a lower bound"),
    }
