class SuffixProposer:
    def __init__(self, *a): ...
    def propose(self, request, num_tokens):
        t = request.token_ids
        for n in (3, 2, 1):
            k = t[-n:]
            for i in range(len(t) - n - 1, -1, -1):
                if t[i : i + n] == k:
                    return t[i + n : i + n + num_tokens]
        return []

    def forget(self, request): ...
