"""The browser interface: one Gradio page over an `Engine` and a `SessionStore`.

Imports gradio only in the modules that need it, so that the pure parts can be tested without it.
"""
