"""The command `fastmlp`. It uses the library; nothing of the library uses it."""
