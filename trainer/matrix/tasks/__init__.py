"""Tasks whose models write text, which is scored here: code, summaries of code, answers about long documents."""
