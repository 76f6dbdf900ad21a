"""The processes one can start, the command line that fronts them, and what only they use."""
