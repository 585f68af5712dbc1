"""Commands: thin shells over the package, written by hand."""
