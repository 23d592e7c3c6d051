"""Several processes that train one model together: how many there should be, and what they tell each other.

One process a GPU, started by torchrun. Where a job has several GPUs or nodes, SageMaker says so in
input/config/resourceconfig.json and AWS Batch in the variables of its multi-node jobs; `layout` reads either.
"""

import datetime
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import distributed

PORT = 29_500
PATIENCE = datetime.timedelta(minutes=30)  # one process may tokenise while the others wait


@dataclass(frozen=True)
class Layout:
    """Nodes, this node's number, processes on each, and the address of node 0."""

    nodes: int = 1
    node: int = 0
    processes: int = 1
    address: str = "127.0.0.1"

    def command(self, program: Path) -> list[str]:
        """The words that start the program on this node once for each process."""
        # With one node torchrun chooses a free port, so that two trainings on one machine do not meet.
        meeting = (
            [
                f"--nnodes={self.nodes}",
                f"--node-rank={self.node}",
                f"--master-addr={self.address}",
                f"--master-port={PORT}",
            ]
            if self.nodes > 1
            else ["--standalone"]
        )
        words = ["-m", "torch.distributed.run", *meeting, f"--nproc-per-node={self.processes}"]
        return [sys.executable, *words, str(program)]


def layout(root: Path, environ: Mapping[str, str], gpus: int) -> Layout:
    """What SageMaker's or Batch's files and variables say about this job; RETRUE_PROCESSES overrules the GPUs."""
    processes = int(environ.get("RETRUE_PROCESSES", max(1, gpus)))
    resources = root / "input/config/resourceconfig.json"
    if resources.is_file():
        told = json.loads(resources.read_text())
        hosts = sorted(told["hosts"])
        return Layout(len(hosts), hosts.index(told["current_host"]), processes, hosts[0])
    if "AWS_BATCH_JOB_NUM_NODES" in environ:
        # Node 0 is not told its own address.
        address = environ.get("AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS", "127.0.0.1")
        return Layout(
            int(environ["AWS_BATCH_JOB_NUM_NODES"]), int(environ["AWS_BATCH_JOB_NODE_INDEX"]), processes, address
        )
    return Layout(processes=processes)


@dataclass(frozen=True)
class Cluster:
    """This process among those that train together; alone it is the first of one."""

    rank: int = 0
    size: int = 1
    local: int = 0

    @property
    def leads(self) -> bool:
        """Whether this process writes, logs and shows progress for all."""
        return self.rank == 0

    def any_of(self, *mine: bool) -> list[bool]:
        """For each question whether any process says yes."""
        return [
            bool(answer) for answer in self.total(torch.tensor(mine, dtype=torch.int64, device=self._device)).tolist()
        ]

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of all processes' values, element by element, in place."""
        if self.size > 1:
            distributed.all_reduce(values)
        return values

    def gather(self, mine: Any) -> list[Any]:
        """What every process has, by rank."""
        if self.size == 1:
            return [mine]
        everyone: list[Any] = [None] * self.size
        distributed.all_gather_object(everyone, mine)
        return everyone

    def share(self, mine: Any) -> Any:
        """What the first process has."""
        if self.size == 1:
            return mine
        box = [mine]
        distributed.broadcast_object_list(box, device=self._device)
        return box[0]

    @property
    def _device(self) -> torch.device:
        return torch.device("cuda", self.local) if torch.cuda.is_available() else torch.device("cpu")

    @contextmanager
    def first_on_each_node(self) -> Iterator[None]:
        """Lets one process of each node through, then the others, who find what it left."""
        if self.size > 1 and self.local:
            distributed.barrier()
        yield
        if self.size > 1 and not self.local:
            distributed.barrier()


@contextmanager
def joined(environ: Mapping[str, str] = os.environ) -> Iterator[Cluster]:
    """The cluster that torchrun has put this process in, or one of its own."""
    if int(environ.get("WORLD_SIZE", "1")) == 1:
        yield Cluster()
        return
    rank, size, local = (int(environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(local)
    distributed.init_process_group("nccl" if cuda else "gloo", timeout=PATIENCE)
    yield Cluster(rank, size, local)
    # Not after an error: the others may wait for this process, and NCCL would wait for them in turn. torchrun ends
    # them once this one has told its reason and is gone.
    distributed.destroy_process_group()
