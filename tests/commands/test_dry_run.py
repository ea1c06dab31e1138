"""Claims in `run --dry-run`."""

from lmconsole.commands.dry_run import describe_claims
from lmconsole.plan.claims import Claim

CONTRASTS: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = (((1,), (3,)), ((5,), (7,)))
SEEDS: dict[int, tuple[int, ...]] = {1: (7, 8, 9), 5: (7, 8, 9)}
SETTING = Claim(name="A \x1b[31m", contrasts=CONTRASTS, seeds=SEEDS, delta=0.02)
STUDIES = Claim(
    contrasts=(((1, 2, 3), (5, 6, 7)),), seeds=SEEDS, endpoint="seconds", targets=(300.0, 120.5), paired=True
)


def test_claims_are_described_before_they_are_registered() -> None:
    rows = describe_claims([SETTING, STUDIES], None)
    assert rows[0] == ("claims", "not registered yet; the same command without --dry-run registers:")
    assert [value for _, value in rows[1:]] == [
        "“A \\x1b[31m”: 1 against 3, 3 seeds each, test loss, δ = 0.02 nats per token",
        "“A \\x1b[31m”: 5 against 7, 3 seeds each, test loss, δ = 0.02 nats per token",
        "1–3 against 5–7, 3 studies each, training time to the target, targets 300, 120.5, in pairs",
    ]
    assert describe_claims([], None) == []
