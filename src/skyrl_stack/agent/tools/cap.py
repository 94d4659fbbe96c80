"""The cap on what a tool answers: an observation costs context, and the policy has to know what it did not see."""


def cap_middle(text: str, limit: int) -> str:
    """`text` in at most about `limit` characters: the middle is cut, and the cut says how much."""
    if len(text) <= limit:
        return text
    head = (limit + 1) // 2
    tail = limit // 2
    return f"{text[:head]}\n[… {len(text) - limit} characters cut …]\n{text[len(text) - tail :]}"
