def solve(stack, cached, progress):
    raise NotImplementedError
