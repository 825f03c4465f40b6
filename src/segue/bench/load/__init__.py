"""A server under load, measured from another process: its speed with many clients, and that every answer is right."""
