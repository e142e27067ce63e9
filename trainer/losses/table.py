"""All losses by their name in the configuration, in the order in which they are logged.

To add one: a file here, its settings in ``schemas/train_config.py`` under the same name, and a line below.
"""

from typing import Any

from trainer.losses.alm import Alm
from trainer.losses.apc import Apc
from trainer.losses.asr import Asr
from trainer.losses.cross_entropy import CrossEntropy
from trainer.losses.lhsm import Lhsm
from trainer.losses.loss import Loss
from trainer.losses.tla import Tla

LOSSES: dict[str, type[Loss[Any]]] = {
    "tla": Tla,
    "cross_entropy": CrossEntropy,
    "alm": Alm,
    "lhsm": Lhsm,
    "apc": Apc,
    "asr": Asr,
}
