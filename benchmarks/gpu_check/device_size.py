"""How much each part of the check does: enough to be measured on a GPU, or just enough to run every line on a CPU."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DecoderShape:
    """Dimensions of a decoder. ``barred``: its ratios have bars."""

    name: str
    layers: int
    width: int
    mlp_width: int
    attention_heads: int
    key_value_heads: int
    head_dim: int
    vocabulary: int
    barred: bool = False

    @property
    def parameters(self) -> int:
        """Number of weights, norms aside."""
        attention = 2 * self.width * self.head_dim * (self.attention_heads + self.key_value_heads)
        return self.layers * (attention + 3 * self.width * self.mlp_width) + 2 * self.vocabulary * self.width


@dataclass(frozen=True)
class DeviceSize:
    """What is run on one kind of device. Rows and tokens are counts."""

    device: str
    vocabularies: tuple[int, ...]
    checked_rows: int  # of logits, compared with float64
    timed_rows: int
    hidden_width: int
    decoders: tuple[DecoderShape, ...]
    decoder_dtype: str
    step_tokens: int  # of one captured step
    sequence_tokens: int
    repetitions: int
    teacher: DecoderShape  # of the caches that are compared, and of the students that are trained
    corpus_modules: int
    max_tokens: int  # of a sequence of these caches
    training_steps: int
    head_rows: int  # of the fused head against a plain one
    head_vocabulary: int
    head_width: int
    student: DecoderShape  # of a step from a cache against one on hard labels


SMALL = DecoderShape("small", 4, 256, 512, 4, 2, 64, 4_096)
TINY = DecoderShape("tiny", 4, 64, 128, 4, 2, 32, 1_024)
QWEN3_600M = DecoderShape("0.6 B", 28, 1_024, 3_072, 16, 8, 128, 151_936)
QWEN3_8B = DecoderShape("8 B", 36, 4_096, 12_288, 32, 8, 128, 151_936, barred=True)

GPU = DeviceSize(
    device="cuda",
    vocabularies=(49_152, 151_936, 248_320),
    checked_rows=64,
    timed_rows=1_024,
    hidden_width=4_096,
    decoders=(QWEN3_600M, QWEN3_8B),
    decoder_dtype="bfloat16",
    step_tokens=16_384,
    sequence_tokens=2_048,
    repetitions=5,
    teacher=SMALL,
    corpus_modules=24,
    max_tokens=512,
    training_steps=5,
    head_rows=16_384,
    head_vocabulary=151_936,
    head_width=2_048,
    student=QWEN3_600M,
)
CPU = DeviceSize(
    device="cpu",
    vocabularies=(9_000,),
    checked_rows=16,
    timed_rows=64,
    hidden_width=256,
    decoders=(TINY,),
    decoder_dtype="float32",
    step_tokens=256,
    sequence_tokens=64,
    repetitions=1,
    teacher=TINY,
    corpus_modules=2,
    max_tokens=64,
    training_steps=2,
    head_rows=256,
    head_vocabulary=4_096,
    head_width=64,
    student=TINY,
)
