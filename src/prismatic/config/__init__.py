"""The command line, what it refuses, and where things lie."""
