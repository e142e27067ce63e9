"""Turning a teacher's rows into rows over the tokens of a student with another tokenizer."""
