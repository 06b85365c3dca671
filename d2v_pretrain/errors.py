"""One ConfigError: key, value, rule, remedy."""


class ConfigError(ValueError):
    """A mistake of the user's, told in one sentence with a remedy.

    Args:
        key: the configuration key or file at fault, as the user types it (``masking.prob``,
            ``data.root``).
        value: what it was.
        rule: what must hold, as a clause (``"must be at most the depth, 4"``).
        remedy: what to type instead, as an imperative clause; may be empty.
    """

    def __init__(self, key: str, value: object, rule: str, remedy: str = "") -> None:
        self.key, self.value, self.rule, self.remedy = key, value, rule, remedy
        super().__init__(f"{key}={value!s} {rule}" + (f"; {remedy}" if remedy else "") + ".")
