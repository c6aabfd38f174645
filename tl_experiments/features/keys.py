import hashlib


def activation_key(cut, facts):
    digest = hashlib.blake2b(repr((sorted(facts.items()), cut.program)).encode(), digest_size=16)
    for name, t in sorted(cut.prefix_state.items()):
        digest.update(name.encode())
        digest.update(t.detach().cpu().contiguous().view(-1).numpy().tobytes())
    return digest.hexdigest()
