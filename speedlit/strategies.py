"""Names for the trainer: ``trainer.strategy`` may be single, ddp, fsdp, or whatever Lightning knows.

LoRA trains few weights, so ddp is the default on several devices; sharding gains only where the base doesn't fit.

Checkpoints of all of them hold the same: the trained weights and the optimizer's state by number. A full one is one file; a
sharded one is a folder that all processes write (torch's distributed checkpoint), and its ``meta.pt``. Each can be read under
each strategy, with any number of processes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import ModelParallelStrategy

from speedlit.checkpoints import META, mapped, read_folder, taken_out
from speedlit.checkpoints import Place as Place  # checkpoints of earlier versions name it here
from speedlit.errors import UsageError
from speedlit.files import remove
from speedlit.shares import nearest, share, whole

OPTIONS = ("cpu_offload", "checkpoint", "tensor_parallel_size")


def strategy(name: Any) -> Any:
    """What Lightning is given for a name of ours, or for {name: fsdp, options}; other values as they are.

    Raises:
        UsageError: a strategy or an option that isn't there.
    """
    options = {key: value for key, value in name.items() if key != "name"} if isinstance(name, dict) and "name" in name else {}
    name = name["name"] if isinstance(name, dict) and "name" in name else name
    if name == "single" and not options:
        return "auto"
    if isinstance(name, str) and name.startswith(("fsdp", "deepspeed")) and name != "fsdp":
        raise UsageError(f"trainer.strategy is {name}, which speedlit doesn't support; use fsdp (weights are spread) or ddp (only gradients are exchanged)")
    if wrong := [key for key in options if name != "fsdp" or key not in OPTIONS]:
        raise UsageError(f"trainer.strategy.{wrong[0]} is unknown with {name}; fsdp takes {', '.join(OPTIONS)}, and the others take none")
    if options.get("checkpoint", "full") not in ("sharded", "full"):
        raise UsageError(f"trainer.strategy.checkpoint is {options['checkpoint']!r}; choose sharded or full")
    size = options.get("tensor_parallel_size", 1)
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise UsageError(f"trainer.strategy.tensor_parallel_size is {size!r}; give the number of processes that share each matrix, or 1: none do")
    return {"class_path": "speedlit.strategies.FSDP", "init_args": options} if name == "fsdp" else name


def sharded(strategy: Any) -> bool:
    """Whether a Lightning strategy spreads the weights over processes, so that a layer has them only while it runs."""
    return isinstance(strategy, FSDP) or type(strategy).__name__ in ("FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy")


def split_over(strategy: Any) -> int:
    """How many processes share each matrix and see the same samples; 1: none do."""
    return strategy.tensor_parallel_size if isinstance(strategy, FSDP) else 1


def data_ranks(trainer: Any) -> tuple[int, int]:
    """Which share of the samples this process sees, and how many shares there are."""
    together = split_over(trainer.strategy)
    return trainer.global_rank // together, trainer.world_size // together


def data_group(strategy: Any) -> Any:
    """One process of each share of the samples, this one among them; None: all processes, as each has a share of its own."""
    return strategy.device_mesh["data_parallel"].get_group() if split_over(strategy) > 1 else None


class FSDP(ModelParallelStrategy):
    """FSDP2: each process holds its share of all weights, gradients and optimizer states; the module itself spreads its network.

    Args:
        cpu_offload: shares wait in the memory of the host, which is slow, and updates happen there.
        checkpoint: sharded (a folder, all processes write) or full (one file, written by the first process).
        tensor_parallel_size: how many neighbouring processes (of one node) share each matrix of a layer and compute the same samples together.
    """

    def __init__(self, cpu_offload: bool = False, checkpoint: str = "sharded", tensor_parallel_size: int = 1) -> None:
        backend = "cpu:gloo,cuda:nccl" if cpu_offload and torch.cuda.is_available() else None  # norms of what waits on the host are added up there
        super().__init__(save_distributed_checkpoint=checkpoint == "sharded", process_group_backend=backend)
        self.cpu_offload, self.tensor_parallel_size = cpu_offload, tensor_parallel_size

    @property
    def lightning_restore_optimizer(self) -> bool:
        """As every other strategy: with ``load_optimizer_state_dict``."""
        return True

    def setup_environment(self) -> None:
        """One mesh of all processes: those that see the same samples are neighbours in it.

        Raises:
            UsageError: they can't be put into groups of that size.
        """
        processes, size = self.num_nodes * self.num_processes, self.tensor_parallel_size
        if processes % size:
            near = nearest(size, processes)
            raise UsageError(f"trainer.strategy.tensor_parallel_size is {size}, but {processes} processes don't fall into groups of {size}; set it to {near}")
        self._data_parallel_size, self._tensor_parallel_size = processes // size, size
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Shares of the trained weights; the frozen ones are in the base."""
        return {name: weight.detach() for name, weight in self.lightning_module.named_parameters() if weight.requires_grad}  # type: ignore[union-attr]

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """As the optimizer has it, in shares."""
        return dict(getattr(optimizer, "optimizer", optimizer).state_dict())

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write a folder of shares, or one file of whole tensors."""
        path = Path(self.broadcast(filepath))
        if not self._save_distributed_checkpoint:
            self.checkpoint_io.save_checkpoint(mapped(checkpoint, _on_host), path) if self.is_global_zero else mapped(checkpoint, whole)
            return
        tensors: dict[str, torch.Tensor] = {}
        rest = taken_out(checkpoint, tensors)
        if self.is_global_zero:
            remove(path)
            path.mkdir(parents=True)
        self.barrier()
        dcp.save(tensors, checkpoint_id=path)
        if self.is_global_zero:
            torch.save(rest, path / META)
        self.barrier()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Tensors of a file stay on the disk until a process cuts out its share; from a folder it reads only that."""
        path = Path(self.broadcast(checkpoint_path))
        if not path.is_dir():
            return dict(torch.load(path, map_location="cpu", weights_only=bool(weights_only), mmap=True))
        return read_folder(path, self._templates())

    def _templates(self) -> dict[str, torch.Tensor]:
        """By name in a folder, the weight that a tensor of the same shape is cut like."""
        found = {f"state_dict.{name}": weight for name, weight in self.lightning_module.named_parameters() if weight.requires_grad}  # type: ignore[union-attr]
        for number, optimizer in enumerate(self.optimizers):
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            found |= {f"optimizer_states.{number}.state.{i}": weight for i, weight in enumerate(weights)}
        return found

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Put the trained weights into the network."""
        weights = dict(self.lightning_module.named_parameters())  # type: ignore[union-attr]
        with torch.no_grad():
            for name, value in checkpoint["state_dict"].items():
                if name in weights:
                    weights[name].copy_(share(value, weights[name]))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Put each state into the optimizer, cut as its weight is."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            for number, values in state["state"].items():
                weight = weights[number]
                values.update({key: share(value, weight) for key, value in values.items() if torch.is_tensor(value) and value.shape == weight.shape})
            optimizer.load_state_dict(state)


class Checkpoints(TorchCheckpointIO):
    """Reads folders of shares as well as files; for strategies whose processes hold all weights."""

    def load_checkpoint(self, path: Any, *arguments: Any, **keywords: Any) -> dict[str, Any]:
        """The whole content."""
        if Path(path).is_dir():
            return read_folder(Path(path))
        return dict(super().load_checkpoint(path, *arguments, **keywords))


def read_folders(strategy: Any) -> None:
    """Let a strategy go on from what FSDP has left."""
    if not sharded(strategy) and type(strategy.checkpoint_io) is TorchCheckpointIO:
        strategy.checkpoint_io = Checkpoints()


def _on_host(tensor: torch.Tensor) -> torch.Tensor:
    return whole(tensor).cpu()


def in_slurm() -> bool:
    """Whether this process is a task that srun has started."""
    return "SLURM_STEP_ID" in os.environ and "SLURM_PROCID" in os.environ


def environment() -> dict[str, Any] | None:
    """Who starts the ranks, inside a Slurm job: srun, without Lightning's own requeueing (it hangs), or in a batch script Lightning itself."""
    if "SLURM_JOB_ID" not in os.environ:
        return None
    place = "lightning.pytorch.plugins.environments."
    if in_slurm():
        return {"class_path": place + "SLURMEnvironment", "init_args": {"auto_requeue": False}}
    return {"class_path": place + "LightningEnvironment"}
