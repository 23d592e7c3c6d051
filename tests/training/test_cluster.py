import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from retrue.training import cluster, finetune
from retrue.training.cluster import Layout, layout
from retrue.training.settings import Settings

SETTINGS = Settings(learning_rate=3e-3, epochs=2, batch_size=15, max_tokens=32, max_rows=121)
PROGRAM = """
import gc, os, sys
from pathlib import Path
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from retrue.training import finetune
part = distributed.destroy_process_group
def parting():
    copies = sum(type(each) is DistributedDataParallel for each in gc.get_objects())
    (out.parent / f"copies-{os.environ['RANK']}").write_text(str(copies))
    part()
distributed.destroy_process_group = parting
torch.cpu._is_avx512_bf16_supported = lambda: False
from retrue.training.settings import Settings
encoder, dataset, out = map(Path, sys.argv[1:4])
result = finetune.finetune(encoder, dataset, Settings(**eval(sys.argv[4])), out, cache=out.parent / "tokens")
(out.parent / f"result-{os.environ['RANK']}.json").write_text(result.to_json())
"""


def test_a_job_alone_has_one_process_for_each_gpu(tmp_path: Path) -> None:
    assert layout(tmp_path, {}, 0) == Layout()
    assert layout(tmp_path, {}, 4) == Layout(processes=4)
    assert layout(tmp_path, {"RETRUE_PROCESSES": "2"}, 0) == Layout(processes=2)


def test_sagemakers_hosts_are_numbered_alike_on_each(tmp_path: Path) -> None:
    (tmp_path / "input/config").mkdir(parents=True)
    told = {"current_host": "algo-2", "hosts": ["algo-2", "algo-1"], "network_interface_name": "eth0"}
    (tmp_path / "input/config/resourceconfig.json").write_text(json.dumps(told))
    assert layout(tmp_path, {}, 8) == Layout(nodes=2, node=1, processes=8, address="algo-1")


def test_nodes_of_a_batch_job_meet_at_the_main_node(tmp_path: Path) -> None:
    told = {"AWS_BATCH_JOB_NUM_NODES": "3", "AWS_BATCH_JOB_NODE_INDEX": "0", "AWS_BATCH_JOB_MAIN_NODE_INDEX": "0"}
    assert layout(tmp_path, told, 1) == Layout(nodes=3, node=0, processes=1, address="127.0.0.1")
    told |= {"AWS_BATCH_JOB_NODE_INDEX": "2", "AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS": "10.0.0.7"}
    assert layout(tmp_path, told, 1) == Layout(nodes=3, node=2, processes=1, address="10.0.0.7")


def test_torchrun_is_told_where_to_meet_only_where_there_are_several_nodes() -> None:
    alone = Layout(processes=2).command(Path("job.py"))
    assert alone[1:] == ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "job.py"]
    many = Layout(3, 2, 8, "10.0.0.7").command(Path("job.py"))
    assert {"--nnodes=3", "--node-rank=2", "--master-addr=10.0.0.7", "--nproc-per-node=8"} < set(many)


def test_a_process_that_fails_does_not_wait_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []
    monkeypatch.setattr(cluster.distributed, "init_process_group", lambda *_, **__: None)
    monkeypatch.setattr(cluster.distributed, "destroy_process_group", lambda: ended.append("destroyed"))
    told = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
    with pytest.raises(MemoryError), cluster.joined(told):
        raise MemoryError
    assert ended == []
    with cluster.joined(told) as found:
        assert (found.rank, found.size, found.leads) == (1, 2, False)
    assert ended == ["destroyed"]


def test_two_processes_learn_what_one_learns(
    tiny_encoder: Path, tiny_dataset: Path, tmp_path: Path, fp32: None
) -> None:
    folder = tmp_path / "encoder"
    shutil.copytree(tiny_encoder, folder)
    config = json.loads((folder / "config.json").read_text())
    # Without dropout, since each process draws its own numbers. 121 rows leave a last step of one row for two.
    (folder / "config.json").write_text(json.dumps({**config, "seq_classif_dropout": 0.0}))
    alone = finetune.finetune(folder, tiny_dataset, SETTINGS, tmp_path / "alone")
    (tmp_path / "program.py").write_text(PROGRAM)
    command = Layout(processes=2).command(tmp_path / "program.py")
    told = [folder, tiny_dataset, tmp_path / "out", repr(dataclasses.asdict(SETTINGS))]
    done = subprocess.run(
        [*command, *map(str, told)], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3_000:]
    together, second = (finetune.Result.from_json((tmp_path / f"result-{rank}.json").read_text()) for rank in range(2))
    assert together.device.startswith("cpu, 2 ×")
    assert together.steps == alone.steps == 18
    assert np.abs(np.array(together.losses) - np.array(alone.losses)).max() < 1e-4
    assert [entry["accuracy"] for entry in together.history] == [entry["accuracy"] for entry in alone.history]
    assert second.history == together.history
    # One that outlives the group now and then stands still for ever, each thread waiting for the other.
    assert [(tmp_path / f"copies-{rank}").read_text() for rank in range(2)] == ["0", "0"]
