"""Rounds on the student's own text: it generates, the teacher scores, it trains; each in a process of its own."""
