"""Generate replies to prompts: plan, samplers, reject reasons, the job."""
