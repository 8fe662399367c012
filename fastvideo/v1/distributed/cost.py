"""What a denoising step costs in a layout: the bytes and seconds of its collectives beside its arithmetic.

Arithmetic alone, without torch; every figure is one GPU's. Activations are sent in bfloat16. Only the weights of a
sharded block are taken to come in behind the block before it; a ring's passes count in full, though sent ahead, since
how far attention hides them has not been measured. A part of a product, or of attention, is taken to run as fast as
the whole.
"""

import math
from dataclasses import dataclass

from fastvideo.v1.distributed.cluster import Cluster
from fastvideo.v1.distributed.layout import ParallelLayout

_BFLOAT16, _FLOAT32 = 2, 4
# Bytes at the peak of a forward, for each token and channel: infra/benchmarks/memory_h100.json, 26 to 30 computed.
_ACTIVATION_BYTES = 30
# Those that the first branch of guidance leaves the second: embedded patches and what block 0 attended to.
_KEPT_BYTES = 2 * _BFLOAT16


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What a denoising step asks of a transformer: ``num_branches`` forwards of one sample, 2 with guidance.

    ``matrix_flops`` and ``attention_flops`` are those of one forward. ``joint_text`` tokens take part in the attention
    of the video's ``tokens``; every rank of a sequence has them all. ``num_sums``: the sums over tensor-parallel ranks
    of ``[tokens, width]`` in one forward, ``num_norm_sums`` of ``[tokens, 1]``, for norms over the full width.
    ``output_values`` is the size of the prediction, ``kept_values`` that of the keys and values of a branch's text,
    kept for all steps, and ``weight_bytes`` that of all weights that a GPU holds. Not every attention backend
    ``joins_rings``.
    """

    matrix_flops: float
    attention_flops: float
    tokens: int
    joint_text: int
    width: int
    num_heads: int
    num_layers: int
    num_sums: int
    num_norm_sums: int
    output_values: int
    kept_values: int
    weight_bytes: float
    num_branches: int = 1
    joins_rings: bool = True

    @property
    def flops(self) -> float:
        """Of one forward."""
        return self.matrix_flops + self.attention_flops


@dataclass(frozen=True, kw_only=True)
class Collective:
    """One kind of collective over a step: ``bytes`` that a GPU sends, ``exposed`` of its ``seconds`` are waited for.

    The seconds are those on the link and those of the copies that it needs in a GPU's own memory.
    """

    name: str
    count: int
    bytes: float
    seconds: float
    exposed: float


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """Seconds of arithmetic, and the collectives beside it."""

    compute: float
    collectives: tuple[Collective, ...]

    @property
    def exchange(self) -> float:
        """Seconds of collectives that nothing hides."""
        return sum(collective.exposed for collective in self.collectives)

    @property
    def seconds(self) -> float:
        """Of one step of one sample."""
        return self.compute + self.exchange


def memory_bytes(work: Workload, layout: ParallelLayout, fsdp: int = 1) -> float:
    """What one GPU holds at the peak of a step, its weights sharded by ``layout.tensor`` and over ``fsdp`` GPUs."""
    tokens, branches = _local_tokens(work, layout) + work.joint_text, work.num_branches // layout.cfg
    token_bytes = _ACTIVATION_BYTES + (_KEPT_BYTES if branches > 1 else 0)
    kept = branches * _BFLOAT16 * work.kept_values / layout.tensor
    return work.weight_bytes / (layout.tensor * fsdp) + token_bytes * tokens * work.width + kept


def step_cost(work: Workload, layout: ParallelLayout, cluster: Cluster, fsdp: int = 1) -> StepCost:
    """One denoising step of one sample in ``layout``, its weights gathered from ``fsdp`` GPUs a block ahead.

    The heads must divide by ``layout.tensor * layout.ulysses``.
    """
    split = layout.tensor * layout.ulysses
    assert work.num_heads % split == 0, f"{work.num_heads} heads over {split} ranks"
    step = _Step(work, layout, cluster, fsdp)
    collectives = (*step.ulysses(), *step.ring(), *step.tensor(), *step.outputs(), *step.fsdp())
    return StepCost(compute=step.forwards * (step.matrix_seconds + step.attention_seconds), collectives=collectives)


def _local_tokens(work: Workload, layout: ParallelLayout) -> int:
    return math.ceil(work.tokens / layout.sequence)


class _Step:
    """The parts of :func:`step_cost`; ``span`` of an axis are the successive ranks that one of its groups lies in."""

    def __init__(self, work: Workload, layout: ParallelLayout, cluster: Cluster, fsdp: int) -> None:
        self.work, self.layout, self.cluster, self.num_shards = work, layout, cluster, fsdp
        self.tokens = _local_tokens(work, layout)
        self.forwards = work.num_branches // layout.cfg
        all_tokens = work.tokens + work.joint_text
        matrix_part = (self.tokens + work.joint_text) / all_tokens / layout.tensor
        queries = self.tokens * layout.ulysses + work.joint_text
        attention_part = queries / all_tokens / (layout.ulysses * layout.tensor)
        self.matrix_seconds = work.matrix_flops * matrix_part / cluster.gpu.flops
        self.attention_seconds = work.attention_flops * attention_part / cluster.gpu.flops

    def ulysses(self) -> list[Collective]:
        """Tokens for heads before attention, and back; the text's part of the result, which all ranks want."""
        work, size = self.work, self.layout.ulysses
        if size == 1:
            return []
        span, sent = size * self.layout.tensor, (size - 1) / size
        one = self.tokens * work.width / self.layout.tensor * _BFLOAT16 * sent
        # Heads are sorted by rank before they go, or after they came: a copy, read and written.
        moved = 2 * self.tokens * work.width / self.layout.tensor * _BFLOAT16
        found = [
            self._collective(f"ulysses: {what} all-to-all", span, count, count * one, moved=count * moved)
            for what, count in (("q, k, v", 3 * work.num_layers), ("out", work.num_layers))
        ]
        if work.joint_text:
            text = work.joint_text * work.width / self.layout.tensor * _BFLOAT16 * sent
            found.append(self._collective("ulysses: text all-gather", span, work.num_layers, work.num_layers * text))
        return found

    def ring(self) -> list[Collective]:
        """Keys and values to the next rank, and attention to those at hand added to the sum; the first rank's text."""
        work, size = self.work, self.layout.ring
        if size == 1:
            return []
        span, count = self.layout.sequence * self.layout.tensor, (size - 1) * work.num_layers
        one = 2 * self.tokens * work.width / self.layout.tensor * _BFLOAT16
        # Each part goes to float32, and all but the first into the sum, of which both are read and one is written.
        merged = size * (_BFLOAT16 + _FLOAT32) + (size - 1) * 3 * _FLOAT32
        moved = work.num_layers * self.tokens * work.width / self.layout.tensor * merged
        found = [self._collective("ring: k, v passes", span, count, count * one, moved=moved)]
        if work.joint_text:
            text = work.joint_text * work.width / (self.layout.tensor * self.layout.ulysses) * _BFLOAT16
            found.append(self._collective("ring: text broadcast", span, work.num_layers, work.num_layers * text))
        return found

    def tensor(self) -> list[Collective]:
        """Sums of partial products, and of squares where a norm is over the full width."""
        work, size = self.work, self.layout.tensor
        if size == 1:
            return []
        tokens, sent = self.tokens + work.joint_text, 2 * (size - 1) / size
        sums = work.num_sums * tokens * work.width * _BFLOAT16 * sent
        found = [self._collective("tensor: all-reduce", size, work.num_sums, sums)]
        if work.num_norm_sums:
            squares = work.num_norm_sums * tokens * _FLOAT32 * sent
            found.append(self._collective("tensor: norms' all-reduce", size, work.num_norm_sums, squares))
        return found

    def outputs(self) -> list[Collective]:
        """The prediction's tokens from all ranks of a sequence, and the predictions of both branches."""
        work, layout, found = self.work, self.layout, []
        if layout.sequence > 1:
            gathered = work.output_values * _BFLOAT16 * (layout.sequence - 1) / layout.sequence
            found.append(self._collective("sequence: token all-gather", layout.sequence * layout.tensor, 1, gathered))
        if layout.cfg > 1:
            span, prediction = layout.model_size, work.output_values * _FLOAT32 * (layout.cfg - 1)
            found.append(self._collective("cfg: all-gather", span, 1, prediction))
        return found

    def fsdp(self) -> list[Collective]:
        """Each block's weights, while the one before it is computed."""
        work, size = self.work, self.num_shards
        if size == 1:
            return []
        weights = work.weight_bytes / self.layout.tensor
        hidden = (self.matrix_seconds + self.attention_seconds) * (1 - 1 / work.num_layers)
        sent, moved = weights * (size - 1) / size, 2 * weights
        return [self._collective("fsdp: weight all-gather", size, work.num_layers, sent, hidden, moved)]

    def _collective(
        self, name: str, span: int, count: int, num_bytes: float, hidden: float = 0.0, moved: float = 0.0
    ) -> Collective:
        """``count`` of them with ``num_bytes`` in one forward, as a step has them; see :class:`Collective`."""
        on_link = self.cluster.link(span).seconds(num_bytes, count)
        copies = moved / self.cluster.gpu.memory_bandwidth
        return Collective(
            name=name,
            count=count * self.forwards,
            bytes=num_bytes * self.forwards,
            seconds=(on_link + copies) * self.forwards,
            exposed=(max(0.0, on_link - hidden) + copies) * self.forwards,
        )
