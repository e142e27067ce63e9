"""Ways to run the teacher: vLLM, and transformers as the reference."""
