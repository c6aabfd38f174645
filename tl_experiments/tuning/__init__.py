"""``tl tune``: each arm's settings searched with the same number of trials."""
