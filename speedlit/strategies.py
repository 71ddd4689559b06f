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
from torch.distributed.tensor import DTensor

from speedlit.errors import UsageError
from speedlit.files import remove
from speedlit.models.sharding import share, whole

META = "meta.pt"
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
    if options.get("tensor_parallel_size", 1) != 1:
        raise UsageError(
            f"trainer.strategy.tensor_parallel_size is {options['tensor_parallel_size']}: single matrices aren't split over processes, because adapters "
            "and 4-bit weights can't be; set it to 1, fsdp alone spreads the whole model"
        )
    return {"class_path": "speedlit.strategies.FSDP", "init_args": options} if name == "fsdp" else name


def sharded(strategy: Any) -> bool:
    """Whether a Lightning strategy spreads the weights over processes, so that a layer has them only while it runs."""
    return isinstance(strategy, FSDP) or type(strategy).__name__ in ("FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy")


class FSDP(ModelParallelStrategy):
    """FSDP2: each process holds its share of all weights, gradients and optimizer states; the module itself spreads its network.

    Args:
        cpu_offload: shares wait in the memory of the host, which is slow, and updates happen there.
        checkpoint: sharded (a folder, all processes write) or full (one file, written by the first process).
        tensor_parallel_size: 1; splitting single matrices is refused.
    """

    def __init__(self, cpu_offload: bool = False, checkpoint: str = "sharded", tensor_parallel_size: int = 1) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=checkpoint == "sharded")
        self.cpu_offload = cpu_offload

    @property
    def lightning_restore_optimizer(self) -> bool:
        """As every other strategy: with ``load_optimizer_state_dict``."""
        return True

    def setup_environment(self) -> None:
        """One mesh of all processes."""
        self._data_parallel_size = self.num_nodes * self.num_processes
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
            self.checkpoint_io.save_checkpoint(_mapped(checkpoint, _on_host), path) if self.is_global_zero else _mapped(checkpoint, whole)
            return
        tensors: dict[str, torch.Tensor] = {}
        rest = _taken_out(checkpoint, tensors)
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


def read_folder(path: Path, templates: dict[str, torch.Tensor] | None = None) -> dict[str, Any]:
    """A checkpoint from a folder of shares, whoever wrote it.

    Args:
        path: the folder.
        templates: weights that are spread; a tensor of the same name and shape comes back as this process's share. None: all whole.

    Raises:
        UsageError: the folder is no checkpoint, or is damaged.
    """
    reader = dcp.FileSystemReader(path)
    try:
        rest, stored = torch.load(path / META, weights_only=False), reader.read_metadata().state_dict_metadata
        tensors = {name: _empty(name, what, templates or {}) for name, what in stored.items()}
        dcp.load(tensors, storage_reader=reader, no_dist=templates is None)
    except (OSError, EOFError, RuntimeError, dcp.api.CheckpointException) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UsageError(f"checkpoint {path} is no whole sharded checkpoint ({reason}); name another one, or remove it to start from the beginning") from error
    return dict(_mapped(rest, lambda place: tensors[place.name] if isinstance(place, Place) else place))


def _empty(name: str, what: Any, templates: dict[str, torch.Tensor]) -> torch.Tensor:
    like = templates.get(name, templates.get(name.rpartition(".")[0]))
    if like is not None and like.shape == what.size and isinstance(like, DTensor):
        return torch.zeros_like(like.detach(), dtype=what.properties.dtype)
    return torch.zeros(what.size, dtype=what.properties.dtype)


class Place:
    """Where a tensor stood that lies among the shares."""

    def __init__(self, name: str) -> None:
        self.name = name


def _taken_out(value: Any, tensors: dict[str, torch.Tensor], name: str = "") -> Any:
    """``value`` with a place for each tensor of the weights and of the optimizer; the tensors go to ``tensors``."""
    if isinstance(value, torch.Tensor) and name.startswith(("state_dict.", "optimizer_states.")):
        tensors[name] = value
        return Place(name)
    if isinstance(value, Mapping):
        return {key: _taken_out(item, tensors, f"{name}.{key}" if name else str(key)) for key, item in value.items()}
    if isinstance(value, list):
        return [_taken_out(item, tensors, f"{name}.{i}") for i, item in enumerate(value)]
    return value


def _mapped(value: Any, change: Any) -> Any:
    if isinstance(value, torch.Tensor | Place):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _mapped(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_mapped(item, change) for item in value]
    return value


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
