"""Self-contained HTML pages: one frame, no network access, nothing from data as markup."""
