"""What is done once for all forked commands: imports, and the set-up of numba."""

from importlib import import_module

from numba.core.registry import cpu_target

for name in (
    "s3fs",
    "teacher_cache.teacher_cache_cli",
    "teacher_cache.engines.transformers",
    "teacher_cache.job",
    "tools.cache_tools_cli",
    "torch.utils.tensorboard",
    "trainer.train_student_cli",
    "trainer.distiller",
    "trainer.evaluate",
    "transformers.models.llama.modeling_llama",
):
    import_module(name)
cpu_target.typing_context.refresh()
cpu_target.target_context.refresh()
