"""The terms of a run: what its starter has chosen and signed, and every member keeps to."""

from __future__ import annotations

import math
from hashlib import sha256
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from shoal.errors import UsageError
from shoal.training.federated.compress import Compression, UpdateForm
from shoal.training.federated.demo.direction import DemoTerms
from shoal.training.federated.means import MeanRule
from shoal.training.federated.private import noisy_radius
from shoal.training.federated.secret.secret_sum import LEAST_COUNTED
from shoal.wire.federating import MAX_MEMBERS, MAX_ROUNDS, MAX_SIZE, RunHash

TermsSeconds = Annotated[float, Meta(gt=0, le=86400)]
TermsName = Annotated[str, Meta(min_length=1, max_length=256)]


class FederatedTerms(Struct, frozen=True, array_like=True, gc=False):
    """What members of a run have in common. Fields are added at the end, with a default."""

    model: TermsName
    """What it is called at the starter's; its digest decides."""
    digest: TermsName
    rank: Annotated[int, Meta(ge=1, le=64)]
    alpha: Annotated[float, Meta(gt=0, le=1e6)]
    layers: Annotated[tuple[TermsName, ...], Meta(max_length=64)]
    seed: Annotated[int, Meta(ge=-(1 << 62), le=1 << 62)]
    size: Annotated[int, Meta(ge=1, le=MAX_SIZE)]
    """Elements of the adapter."""
    layout: RunHash
    """Of the adapter's tensors, :attr:`VectorLayout.digest`."""
    rounds: Annotated[int, Meta(ge=1, le=MAX_ROUNDS)]
    steps: Annotated[int, Meta(ge=1, le=1 << 20)]
    """Local steps of a round."""
    rule: MeanRule
    radius: Annotated[float, Meta(gt=0, le=1e12)]
    """The norm to which an update is clipped."""
    outer_rate: Annotated[float, Meta(gt=0, le=100)] = 1.0
    outer_momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    proximal: Annotated[float, Meta(ge=0, le=1e6)] = 0.0
    """FedProx's strength; 0: without."""
    least: Annotated[int, Meta(ge=2, le=MAX_MEMBERS)] = 2
    """Members without whom there is no round."""
    gather_s: TermsSeconds = 60.0
    """How long a round waits for members after the first one that is ready."""
    part_s: TermsSeconds = 60.0
    """How long parts, and then means, are waited for."""
    secret: bool = False
    """Whether updates are added up without anybody seeing one."""
    noise: Annotated[float, Meta(ge=0, le=1e6)] = 0.0
    """Deviation of the noise that each member adds to its clipped update, in ``radius``; 0: none."""
    name: Annotated[str, Meta(max_length=128)] = ""
    compress: Compression = "none"
    """How updates travel."""
    demo: DemoTerms | None = None
    """With ``compress`` "demo", and only then."""

    @property
    def form(self) -> UpdateForm:
        """What parts of updates look like."""
        return UpdateForm(self.size, self.compress, self.secret, self.demo.kept if self.demo else 0)

    def rate_of(self, round: int) -> float:
        """By how much a step by DeMo moves each number in a round, from 0; of another run, nothing."""
        return 0.0 if self.demo is None else self.demo.rate_of(round, self.rounds)

    @property
    def allowed(self) -> float:
        """The norm that an update may have as it is sent, with its noise."""
        return noisy_radius(self.radius, self.noise, self.size)

    def check(self) -> None:
        """Raises UsageError: terms that do not go together."""
        try:
            msgspec.msgpack.decode(msgspec.msgpack.encode(self), type=FederatedTerms)
        except msgspec.ValidationError as error:
            raise UsageError(f"the terms of a run cannot be: {error}", check="look at its options") from error
        if self.secret and self.rule != "mean":
            raise UsageError(
                f"--secret and --mean {self.rule} do not go together: a robust mean compares the updates one "
                "with another, and secret sums show nobody any of them",
                check="choose what you fear more: curious members (--secret) or bad ones (--mean)",
            )
        if self.secret and self.least < LEAST_COUNTED:
            raise UsageError(
                f"--secret with {self.least} members: of a sum of three, two know what the third adds",
                check=f"set --least to {LEAST_COUNTED} or more",
            )
        self._check_compression()
        numbers = (self.radius, self.outer_rate, self.outer_momentum, self.proximal, self.noise, self.alpha)
        if not all(map(math.isfinite, numbers)):
            raise UsageError("a number of the terms is NaN or infinite", check="look at the options")

    def _check_compression(self) -> None:
        """Raises UsageError: updates cannot travel so beside what else the terms ask for."""
        if self.compress == "int8" and self.secret:
            raise UsageError(
                "--compress int8 and --secret do not go together: what hides an update fills all 64 bits of "
                "each of its numbers",
                check="leave one of them out",
            )
        if (self.compress == "demo") != (self.demo is not None):
            raise UsageError("the terms of DeMo, and no run by it, or a run without them")
        if self.demo is None:
            return
        apart = {
            f"--mean {self.rule}": (
                self.rule != "mean",
                "members send different coefficients, which cannot be compared one by one",
            ),
            "--secret": (
                self.secret,
                "which coefficients a member sends would have to be the same for all",
            ),
            "--noise": (
                self.noise > 0,
                "the momentum sends the same gradient over many steps, and epsilon is not known",
            ),
            "--proximal": (self.proximal > 0, "there is one local step, from the shared adapter itself"),
            "an outer step": (
                (self.outer_rate, self.outer_momentum) != (1, 0),
                "the sign is the step, and --rate its rate",
            ),
            f"--steps {self.steps}": (self.steps != 1, "each round is a step: say how many with --rounds"),
        }
        for option, (asked, why) in apart.items():
            if asked:
                raise UsageError(
                    f"--compress demo and {option} do not go together: {why}", check="leave one of them out"
                )


def adam_radius(rate: float, steps: int, size: int) -> float:
    """The norm of an update of ``steps`` steps of AdamW that all go the same way, which none is longer than
    by much: each step moves each of ``size`` numbers by about ``rate``.
    """
    return max(rate, 1e-12) * steps * math.sqrt(size)


def run_of(raw: bytes) -> bytes:
    """The name of a run, 32 bytes: the hash of its signed terms."""
    return sha256(b"shoal federated run 1\0" + raw).digest()


def told(terms: FederatedTerms) -> dict[str, Any]:
    """The terms as JSON has them."""
    fields = {name: getattr(terms, name) for name in terms.__struct_fields__}
    demo = None if terms.demo is None else msgspec.structs.asdict(terms.demo)
    return fields | {"layout": terms.layout.hex(), "layers": list(terms.layers), "demo": demo}
