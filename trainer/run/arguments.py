"""Translate the configuration into transformers' ``TrainingArguments``."""

import logging

import torch
from transformers import TrainingArguments

from schemas.errors import UserError
from schemas.train_config import TrainConfig
from trainer.loggers.report_lines import check_loggers
from trainer.student.parallel import backend, fsdp_settings

logger = logging.getLogger(__name__)


def training_arguments(config: TrainConfig) -> TrainingArguments:
    """Return the ``TrainingArguments``; ``max_steps`` is set once the rows are planned. Raises UserError."""
    loop, optimizer = config.loop, config.optimizer
    check_loggers(loop.report_to)
    on_gpu = torch.cuda.is_available()
    validates = config.data.validation_cache is not None or config.data.validation_fraction > 0
    if loop.early_stopping_patience is not None and not validates:
        raise UserError(
            f"loop.early_stopping_patience: {loop.early_stopping_patience} needs validation data; "
            "set data.validation_fraction or data.validation_cache"
        )
    arguments = TrainingArguments(
        output_dir=config.output,
        max_steps=1,
        per_device_train_batch_size=loop.micro_batch_size,
        gradient_accumulation_steps=loop.gradient_accumulation,
        learning_rate=optimizer.lr,
        lr_scheduler_type="cosine",
        warmup_steps=optimizer.warmup_steps,
        weight_decay=optimizer.weight_decay,
        adam_beta1=optimizer.betas[0],
        adam_beta2=optimizer.betas[1],
        adam_epsilon=optimizer.eps,
        max_grad_norm=optimizer.max_grad_norm,
        seed=loop.seed,
        bf16=loop.bf16 or config.student.dtype == "bfloat16",
        gradient_checkpointing=loop.gradient_checkpointing,
        gradient_checkpointing_kwargs={
            "use_reentrant": False
        },  # reentrant, features recorded inside a layer have no gradient
        logging_steps=loop.log_every,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=loop.save_every,
        eval_strategy="steps" if validates else "no",
        eval_steps=loop.validate_every if validates else None,
        ignore_data_skip=True,  # our sampler starts at the first unconsumed row
        remove_unused_columns=False,
        dataloader_num_workers=config.data.num_workers,
        dataloader_pin_memory=on_gpu,
        use_cpu=not on_gpu,
        ddp_find_unused_parameters=False,
        ddp_backend=backend(loop),
        **fsdp_settings(loop),
        report_to="none",
        disable_tqdm=True,
        log_level="error",
    )
    if arguments.n_gpu > 1:
        logger.warning("using one of %d GPUs", arguments.n_gpu)
        arguments._n_gpu = 1
    return arguments
