"""What ``cache-tools compare --json`` prints of two teachers, as far as the page of a matrix shows it."""

from pydantic import BaseModel, ConfigDict, Field


class _Part(BaseModel):
    """Other keys are left aside."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class Mean(_Part):
    """The mean of a figure over rows; nats."""

    mean: float


class Difference(Mean):
    """The mean over rows, with a standard error over samples."""

    standard_error: float | None  # None: one sample


class TeacherFigures(_Part):
    """One teacher's distributions on the common texts."""

    entropy: Mean
    effective_support: float
    top1_mass: float
    perplexity: float
    decorative_mass: float


class BothFigures(_Part):
    """Both teachers on the common texts."""

    samples: int
    rows: int
    a: TeacherFigures
    b: TeacherFigures
    entropy_b_minus_a: Difference
    top1_agreement: float
    kl_a_b: Mean
    kl_b_a: Mean
    decorative_share: float  # of the tokens of the texts


class ComparedCache(_Part):
    """The cache of one teacher."""

    teacher: str = Field(max_length=4096)
    manifest_digest: str = Field(max_length=128)


class TeachersCompared(_Part):
    """The whole comparison."""

    a: ComparedCache
    b: ComparedCache
    entropy_is_exact: bool
    overall: BothFigures
