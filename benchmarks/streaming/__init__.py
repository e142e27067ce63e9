"""How fast rows are streamed, here and with other readers."""
