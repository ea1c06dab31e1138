"""The console: a Textual app that looks at the run store, and asks for runs as the command line does."""
