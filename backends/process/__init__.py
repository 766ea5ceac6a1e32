"""A backend in a process of its own: the worker, its client, and the messages between them."""
