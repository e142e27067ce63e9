"""From records to bytes and back."""
