"""What transformers itself would print."""

import transformers


def quiet_transformers() -> None:
    """Keep transformers' own messages and progress bars off the terminal; ours say what matters."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
