"""Curation: steps that let records of a corpus stay or leave, each with a reason, and the job that applies them."""
