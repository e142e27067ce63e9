"""Remove FFN channels from the model that a student starts from, as measured on a cache's tokens."""

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from schemas.strict import Sha256, Strict
from schemas.train_config import CacheShare, TrainConfig
from trainer.data.calibration import calibration_batches, calibration_rows
from trainer.data.open_caches import check_vocabulary, open_cache
from trainer.data.shares import required_of, selection_of
from trainer.student.ffn_channels import prune_ffns
from trainer.student.preflight import check_positions
from trainer.student.student_tokenizer import check_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PrunedFfns(Strict):
    """What was removed from the FFNs, measured."""

    widths: dict[str, tuple[int, int]]  # before and after, by key of the model's configuration
    parameters: tuple[int, int]  # of the whole model that was cut, before and after
    cache: Sha256  # digest of the cache that channels were measured on
    samples: int
    tokens: int


def measured_on(config: TrainConfig) -> CacheShare:
    """The cache that FFN channels are measured on: as set, else the first to train on."""
    assert config.student.ffn is not None
    url, shares = config.student.ffn.cache, config.data.shares
    return shares[0] if url is None else next((share for share in shares if share.url == url), CacheShare(url=url))


class FfnPruning:
    """``student.ffn`` applied to a model, and what was measured."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.done: PrunedFfns | None = None

    def __call__(self, model: "PreTrainedModel", folder: Path) -> None:
        """Remove channels in place. Raises UserError, also if the cache's tokens are not those of the model."""
        settings, data, share = self.config.student.ffn, self.config.data, measured_on(self.config)
        assert settings is not None
        with closing(open_cache(share.url, ("tokens",), required=required_of(share, data))) as cache:
            check_tokenizer(
                cache.manifest,
                folder,
                share.url,
                trust_remote_code=self.config.student.trust_remote_code,
                advice="set student.ffn.cache to a cache of this tokenizer",
            )
            check_vocabulary(cache.manifest, model.config, where=share.url)
            rows = calibration_rows(cache, selection_of(share, data), settings.samples)
            check_positions(model.config, rows.longest, share.url)
            before = model.num_parameters()
            widths = prune_ffns(model, settings, calibration_batches(cache, rows, data.on_corrupt == "skip"))
            self.done = PrunedFfns(
                widths=widths,
                parameters=(before, model.num_parameters()),
                cache=cache.manifest.digest(),
                samples=len(rows),
                tokens=rows.num_tokens,
            )
