"""Views of finished runs in other people's tools. The records are the truth; nothing here is read back."""
