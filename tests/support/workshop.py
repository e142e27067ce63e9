"""A folder with one of everything that commands take, and every command with what it needs of that."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from support.golden import BUNDLED
from support.models import write_random_teacher, write_text_corpus
from support.synthetic import random_shards, write_cache
from support.workspace import cache_tree
from teacher_cache.shards.storage import Storage
from tools.bridges.export import export
from tools.trust.sign import generate_key, load_private_key
from tools.trust.sign import sign as sign_cache


def make_workshop(folder: Path) -> Path:
    """Three caches (one signed, one older), a catalogue's folder, an export, keys, a corpus, a teacher, settings."""
    folder.mkdir(parents=True)
    write_cache(str(folder / "cache"), random_shards([[9, 5], [7]]))
    write_cache(str(folder / "other"), random_shards([[6], [4, 8]], seed=1))
    write_cache(str(folder / "caches/a"), random_shards([[5]], seed=2))
    shutil.copytree(BUNDLED, folder / "older")
    generate_key(folder / "key", "owner")
    sign_cache(Storage(str(folder / "cache")), load_private_key(folder / "key", str), "owner")
    export(str(folder / "cache"), str(folder / "exported"), "parquet", None, 1_000_000, lambda done, total: None)
    teacher = write_random_teacher(folder / "teacher")
    corpus = write_text_corpus(folder / "corpus", documents=6)
    tree = cache_tree(teacher, corpus, Path("made"), tokens_per_shard=150)
    (folder / "cache.yaml").write_text(yaml.safe_dump(tree))
    train = {
        "data": {"cache": str(folder / "trained_on"), "num_workers": 0},
        "student": {"teacher": str(teacher), "from_layers": [0]},
        "loop": {"max_steps": 2, "micro_batch_size": 2, "save_every": 1},
        "output": "student",
    }
    (folder / "train.yaml").write_text(yaml.safe_dump(train))
    return folder


@dataclass(frozen=True)
class Command:
    """A command line, run in a folder of its own; ``W`` in it stands for the workshop.

    ``copies``: what it changes, which is copied to its folder. ``made``: the cache it leaves, to be verified.
    """

    line: str
    copies: Sequence[str] = ()
    made: str = ""

    def prepare(self, workshop: Path, folder: Path) -> list[str]:
        """Make its folder; returns the arguments."""
        folder.mkdir(parents=True)
        for name in self.copies:
            source = workshop / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
        return [part.replace("W/", f"{workshop}/") for part in self.line.split()]


TOOLS = {
    "inspect": Command("cache-tools inspect W/cache"),
    "verify": Command("cache-tools verify W/cache"),
    "stats": Command("cache-tools stats W/cache"),
    "compare": Command("cache-tools compare W/cache W/cache"),
    "report": Command("cache-tools report W/cache report.html"),
    "card": Command("cache-tools card cache --write", copies=["cache"], made="cache"),
    "catalog": Command("cache-tools catalog caches", copies=["caches"]),
    "search": Command("cache-tools search W/caches"),
    "export": Command("cache-tools export W/cache out --to parquet"),
    "import": Command("cache-tools import W/exported made --from parquet", made="made"),
    "merge": Command("cache-tools merge W/cache W/other made", made="made"),
    "repack": Command("cache-tools repack W/cache made --k 4", made="made"),
    "upgrade": Command("cache-tools upgrade W/older made --tokenizer W/teacher", made="made"),
    "prune": Command("cache-tools prune cache", copies=["cache"], made="cache"),
    "push": Command("cache-tools push W/cache made", made="made"),
    "pull": Command("cache-tools pull W/cache made --sample 60%", made="made"),
    "subset": Command("cache-tools subset W/cache made --shards 0", made="made"),
    "split": Command("cache-tools split W/cache made --parts a=50%,b=50%"),
    "keygen": Command("cache-tools keygen new-key --name me"),
    "sign": Command("cache-tools sign cache --key key", copies=["cache", "key", "key.pub"], made="cache"),
    "trust": Command("cache-tools trust W/key.pub --trusted-keys keys"),
}
JOBS = {
    "plan": Command("teacher-cache plan W/cache.yaml"),
    "preview": Command("teacher-cache preview W/cache.yaml"),
    "run": Command("teacher-cache run W/cache.yaml", made="made"),
    "init": Command("train-student init W/train.yaml"),
    "train": Command("train-student run W/train.yaml"),
    "quantise": Command("train-student export W/teacher small --cache W/trained_on --group-size 32 --no-check"),
    "evaluate": Command("train-student evaluate W/teacher W/trained_on --limit 2"),
}
ALL = {**TOOLS, **JOBS}
