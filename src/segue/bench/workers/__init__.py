"""Engines that live in another Python, at the far end of a pipe. They and Segue import nothing of each other."""
