"""Many processes and one batch: the only module that touches torch.distributed.

`joined` makes a process one of the ranks that torchrun has started, over NCCL on CUDA and over gloo elsewhere, and
`parallel` has a model trained by all of them. Gradients are summed over ranks, not averaged: the loss is that of the
whole batch, and what a rank has of a parameter's gradient is its part of the sum (see loss.py).
"""

from __future__ import annotations

import json
import math
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from inspect import signature
from typing import Any

import geoopt
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from .device import pick_device
from .errors import UserError
from .model import DualEncoder
from .peers import Peers, Value
from .roll_call import RollCall, first_words
from .step import Towers

TIMEOUT = 60.0
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# What gloo, NCCL and the store say when another process has gone; torch gives them no type of their own.
_LOST = re.compile(r"connection (was )?(closed|reset|refused)|timed? ?out|broken pipe|gloo|NCCL", re.I)
# torch 2.14 renames these.
_gather_into = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_scatter_sum_into = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_SYNC_BUFFERS = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in signature(DistributedDataParallel).parameters
)


@contextmanager
def joined(device: str = "auto", timeout: float = TIMEOUT, ring: bool = False) -> Iterator[Peers]:
    """This process among the ranks that torchrun has started; a process alone where there are no others.

    Args:
        device: as of `pick_device`; "auto" and "cuda" give each rank of a machine its own GPU.
        timeout: seconds after which a rank that is waited for counts as dead.
        ring: see `Peers.ring`.

    Raises:
        UserError: where the environment is not torchrun's, and within, on the ranks that are left, when a rank dies.

    Examples:
        >>> from oblique_clip.distributed import joined
        >>> with joined("cpu") as peers:  # under torchrun, one of many
        ...     print(peers.rank, peers.world, peers.device)
        0 1 cpu
    """
    if "RANK" not in os.environ or os.environ.get("WORLD_SIZE") == "1":
        peers = Peers()
        peers.device = pick_device(device)
        yield peers
        return
    if missing := [name for name in VARIABLES if name not in os.environ]:
        raise UserError(f"RANK is set, but {', '.join(missing)} not: start many processes with torchrun")
    ranks = Ranks(_own_device(device), timeout, ring)
    try:
        yield ranks
        ranks.barrier()
    except BaseException as error:
        if isinstance(error, RuntimeError) and _LOST.search(str(error)):
            raise UserError(ranks.obituary(error)) from error
        ranks.roll_call.confess(error)
        raise
    finally:
        ranks.leave()


def _own_device(name: str) -> torch.device:
    local = int(os.environ["LOCAL_RANK"])
    if name == "mps" or name.startswith("cuda:"):
        raise UserError(f"--device {name} would put every rank on one GPU: take cuda, or cpu")
    if name == "cuda" or (name == "auto" and torch.cuda.is_available()):
        device = pick_device(f"cuda:{local}")
        torch.cuda.set_device(device)
        return device
    return torch.device("cpu")


class Ranks(Peers):
    """One of many processes, by the variables of torchrun; see `joined`, which also ends it.

    Bytes that a rank sends (and receives), of blocks of b = B/W pairs: `gather` and `scatter_sum` b (W - 1) points,
    `shift` b points, `largest_` and `sum_` about two times what they are given.
    """

    def __init__(self, device: torch.device, timeout: float = TIMEOUT, ring: bool = False) -> None:
        self.device, self.ring, self._timeout = device, ring, timedelta(seconds=timeout)
        try:
            self.rank, self.world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        except ValueError as error:
            raise UserError(f"RANK and WORLD_SIZE must be numbers, as torchrun sets them: {error}") from error
        try:
            self._store, _, _ = next(rendezvous("env://", timeout=self._timeout))
            backend = "nccl" if device.type == "cuda" else "gloo"
            store = PrefixStore("ranks", self._store)
            dist.init_process_group(
                backend, store=store, rank=self.rank, world_size=self.world, timeout=self._timeout
            )  # fmt: skip
            # Counts and settings are on the CPU, where asking for them makes nobody wait for a GPU.
            self._small: Any = None if backend == "gloo" else dist.new_group(backend="gloo", timeout=self._timeout)
            self.roll_call = RollCall(self._store, self.rank, self.world)
        except RuntimeError as error:
            place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            met = f"rank {self.rank} met no {self.world - 1} others"
            raise UserError(f"{met} at {place}: {first_words(error)}") from error

    def sizes(self, count: int) -> list[int]:
        counts = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        dist.all_gather(counts, torch.tensor([count]), group=self._small)
        return [int(number) for number in counts]

    def gather(self, block: Tensor, sizes: Sequence[int]) -> Tensor:
        longest = max(sizes)
        whole = block.new_empty((self.world * longest, *block.shape[1:]))
        _gather_into(whole, _padded(block, longest))
        if min(sizes) == longest:
            return whole
        return torch.cat([part[:size] for part, size in zip(whole.split(longest), sizes, strict=True)])

    def scatter_sum(self, whole: Tensor, sizes: Sequence[int]) -> Tensor:
        longest = max(sizes)
        if min(sizes) < longest:
            whole = torch.cat([_padded(part, longest) for part in whole.split(list(sizes))])
        own = whole.new_empty((longest, *whole.shape[1:]))
        _scatter_sum_into(own, whole.contiguous())
        return own[: sizes[self.rank]]

    def largest_(self, numbers: Tensor) -> Tensor:
        dist.all_reduce(numbers, dist.ReduceOp.MAX)
        return numbers

    def sum_(self, numbers: Tensor) -> Tensor:
        dist.all_reduce(numbers)
        return numbers

    def shift(self, block: Tensor, size: int) -> Callable[[], Tensor]:
        block, arriving = block.contiguous(), block.new_empty((size, *block.shape[1:]))
        ends = (
            (dist.isend, block, (self.rank + 1) % self.world),
            (dist.irecv, arriving, (self.rank - 1) % self.world),
        )  # fmt: skip
        moves = [dist.P2POp(move, tensor, other) for move, tensor, other in ends if tensor.numel()]
        works = dist.batch_isend_irecv(moves) if moves else []

        def wait(held: Tensor = block) -> Tensor:
            for work in works:
                work.wait()
            return arriving

        return wait

    def from_first(self, value: Value) -> Value:
        # As JSON: nothing that comes over the wire is ever executed.
        letters = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)
        length = torch.tensor([len(letters)])
        dist.broadcast(length, 0, group=self._small)
        if self.rank:
            letters = torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(letters, 0, group=self._small)
        said: Value = json.loads(bytes(letters.tolist()))
        return said

    def barrier(self, patience: float | None = None) -> None:
        timeout = self._timeout if patience is None else timedelta(seconds=patience)
        dist.monitored_barrier(self._small, timeout=timeout)

    def leave(self) -> None:
        """Close what is open."""
        self.roll_call.end()
        # What is broken already need not be closed in good order.
        with suppress(RuntimeError):
            dist.destroy_process_group()

    def obituary(self, error: BaseException) -> str:
        """One line for when another rank is gone: which, and why, as far as can be known."""
        gone = self.roll_call.gone()
        names = f"rank{'s' * (len(gone) > 1)} {', '.join(map(str, gone))}" if gone else "another rank"
        cause = "; ".join(filter(None, gone.values())) or first_words(error)
        return (
            f"rank {self.rank} of {self.world} stops, as {names} {'are' if len(gone) > 1 else 'is'} gone ({cause}); "
            "what is saved goes on with --resume"
        )


def _padded(block: Tensor, length: int) -> Tensor:
    """Zeros behind a block, up to a length that all ranks send."""
    if len(block) < length:
        block = F.pad(block, [0, 0] * (block.ndim - 1) + [0, length - len(block)])
    return block.contiguous()


def parallel(model: DualEncoder, peers: Peers, fsdp: bool = False) -> Towers:
    """The towers of a model as the ranks train it together; every rank then has rank 0's weights.

    The model keeps its modules and the names of its weights. Gradients must be cleared between steps, and towers locked
    before. Batch norms keep the statistics of their own rank's pictures.

    Args:
        fsdp: whether each rank keeps a part of every tower's weights, gradients and optimiser state, all of them being
            together on a rank only while the tower runs (FSDP2); else each keeps all (DDP).

    Raises:
        UserError: for class tokens that are points with `fsdp`, as a part of a point is none.

    Examples:
        >>> import torch
        >>> from oblique_clip import create_model, model_config
        >>> from oblique_clip.distributed import joined, parallel
        >>> from oblique_clip.step import train_step
        >>> model = create_model(model_config("tiny", "oblique"))
        >>> images, ids = torch.randn(4, 3, 32, 32), torch.randint(1, 4095, (4, 5))  # this rank's pairs
        >>> with joined("cpu") as peers:
        ...     towers = parallel(model, peers)
        ...     loss, image_points, _ = train_step(model, images, ids, None, "info_nce", "float32", towers=towers)
        >>> image_points.shape
        torch.Size([4, 8, 16])
    """
    if fsdp and any(isinstance(parameter, geoopt.ManifoldParameter) for parameter in model.parameters()):
        raise UserError("--fsdp would cut class tokens that are points into parts: take --class-tokens free")
    if peers.world == 1:
        return Towers(model)
    for tensor in (*model.parameters(), *model.buffers()):
        dist.broadcast(tensor.data, 0)
    return (_Sharded if fsdp else _Replicated)(model, peers)


class _Parallel(Towers):
    """What both ways have in common: the few parameters outside of the towers, exchanged by hand."""

    def __init__(self, model: DualEncoder, peers: Peers) -> None:
        super().__init__(model)
        self.peers = peers
        towers = {id(parameter) for tower in (model.visual, model.text) for parameter in tower.parameters()}
        self._others = [p for p in model.parameters() if p.requires_grad and id(p) not in towers]

    def finish(self) -> None:
        if not self._others:
            return
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._others]
        whole = self.peers.sum_(torch.cat([gradient.flatten() for gradient in found]))
        for parameter, gradient in zip(self._others, whole.split([p.numel() for p in self._others]), strict=True):
            parameter.grad = gradient.view_as(parameter).clone()


class _Replicated(_Parallel):
    def __init__(self, model: DualEncoder, peers: Peers) -> None:
        super().__init__(model, peers)
        self._visual, self._text = map(_replicated, (model.visual, model.text))

    def encode_image(self, images: Tensor) -> Tensor:
        self.model.check_images(images)
        return self.model.topology.project(self._visual(images))

    def encode_text(self, ids: Tensor) -> Tensor:
        return self.model.topology.project(self._text(ids))

    @contextmanager
    def held_back(self) -> Iterator[None]:
        with ExitStack() as stack:
            for tower in (self._visual, self._text):
                if isinstance(tower, DistributedDataParallel):
                    stack.enter_context(tower.no_sync())
            yield


def _replicated(tower: nn.Module) -> nn.Module:
    """DDP around a tower, where there is anything to learn."""
    if not any(parameter.requires_grad for parameter in tower.parameters()):
        return tower
    # Buffers are not sent around: ranks may run a tower for different numbers of micro-batches.
    options: dict[str, Any] = {_SYNC_BUFFERS: False, "gradient_as_bucket_view": True}
    wrapped = DistributedDataParallel(tower, **options)
    # A lambda, as torch compares annotations with its classes and finds strings here.
    wrapped.register_comm_hook(None, lambda state, bucket: _sum_of(bucket.buffer()))
    return wrapped


def _sum_of(bucket: Tensor) -> torch.futures.Future[Tensor]:
    """The sum over ranks; DDP by itself takes the mean."""
    work: Any = dist.all_reduce(bucket, async_op=True)
    return work.get_future().then(lambda future: future.value()[0])  # type: ignore[no-any-return]


class _Sharded(_Parallel):
    def __init__(self, model: DualEncoder, peers: Peers) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        super().__init__(model, peers)
        # True of what `TokenProjection` returns, and harmless: nothing here changes features in place.
        warnings.filterwarnings("ignore", message=".*returned a view tensor", category=UserWarning)
        mesh = init_device_mesh(peers.device.type, (peers.world,))
        self._towers: list[Any] = [model.visual, model.text]
        for tower in self._towers:
            # As a whole: `run_blocks` takes the weights of blocks without calling these, so no hook of theirs fires.
            fully_shard(tower, mesh=mesh, reshard_after_forward=True)
            # A sum, and one that gloo has too.
            tower.set_gradient_divide_factor(1.0)
            tower.set_force_sum_reduction_for_comms(True)

    @contextmanager
    def held_back(self) -> Iterator[None]:
        for tower in self._towers:
            tower.set_requires_gradient_sync(False)
        yield
        for tower in self._towers:
            tower.set_requires_gradient_sync(True)


def clip_gradients(parameters: Iterable[nn.Parameter], longest: float) -> Tensor:
    """Scale gradients so that together they are no longer than `longest`; gives their length before, on every rank.

    With `longest` infinite they are measured alone.

    As `nn.utils.clip_grad_norm_`, which does not take gradients that are on this rank together with parts of others.

    Examples:
        >>> import torch
        >>> from oblique_clip.distributed import clip_gradients
        >>> numbers = [torch.nn.Parameter(torch.zeros(())) for _ in range(2)]
        >>> for number, slope in zip(numbers, (3.0, 4.0)):
        ...     number.grad = torch.tensor(slope)
        >>> clip_gradients(numbers, 1.0).item(), round(numbers[0].grad.item(), 3)
        (5.0, 0.6)
    """
    from torch.distributed.tensor import DTensor

    held = [parameter for parameter in parameters if parameter.grad is not None]
    kinds = [[p for p in held if isinstance(p.grad, DTensor) is parts] for parts in (False, True)]
    lengths = [nn.utils.get_total_norm([p.grad for p in kind if p.grad is not None]) for kind in kinds if kind]
    whole = torch.stack([n.full_tensor() if isinstance(n, DTensor) else n for n in lengths]).norm()
    for kind in filter(None, kinds if longest < math.inf else ()):
        nn.utils.clip_grads_with_norm_(kind, longest, whole)
    return whole


def whole(tensor: Tensor) -> Tensor:
    """A tensor put together from the parts that ranks have of it, where every rank must ask; others as they are.

    Examples:
        >>> import torch
        >>> from oblique_clip.distributed import whole
        >>> whole(torch.ones(2)).tolist()
        [1.0, 1.0]
    """
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def placed(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor as `like` is: on its device, and this rank's part alone where `like` is one.

    Examples:
        >>> import torch
        >>> from oblique_clip.distributed import placed
        >>> placed(torch.ones(2), torch.zeros(2)).tolist()
        [1.0, 1.0]
    """
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(like, DTensor) and value.shape == like.shape:
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return value.to(like.device)
