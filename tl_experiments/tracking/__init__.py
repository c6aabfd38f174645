"""Views of runs in other people's tools, fed from the records by a process of their own; nothing here is read back."""
