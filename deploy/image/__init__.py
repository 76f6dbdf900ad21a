"""Models as images: a runtime image once per set of dependencies, and per model a thin layer on it."""
