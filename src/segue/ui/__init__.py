"""The playground: two methods side by side on one prompt, step by step, with the method list and bench reports."""
