"""The console: a Textual app that shows the run store, and queues runs as the command line does."""
