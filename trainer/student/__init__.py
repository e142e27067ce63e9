"""The student model: building it, running it, recording features inside it, checking that it can be saved."""
