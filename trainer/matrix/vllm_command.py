"""``python -m trainer.matrix.vllm_command ARGUMENTS``: the command ``vllm``, also of its CPU build."""

import sys

from trainer.matrix.vllm_metadata import name_vllm

if __name__ == "__main__":
    name_vllm()
    from vllm.entrypoints.cli.main import main

    sys.argv[0] = "vllm"
    main()
