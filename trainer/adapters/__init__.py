"""Students that are adapters (LoRA, QLoRA) through ``peft``: their layers, checkpoints, folders, and merging."""
