"""One retraining at a time: a document in the lake names the execution whose turn it is, for as long as it runs.

Step Functions lists and describes executions a moment late, so that two that began together may each miss the other.
S3 writes on a condition, and of two writers exactly one succeeds.
"""

from retrue.lake import TURN, Lake
from retrue.records import from_iso, iso
from retrue.workflow import Workflow

UNSEEN_MS = 15 * 60_000  # for so long an execution that cannot be described may be one that has just begun


def take(store: Lake, workflow: Workflow, execution: str, event: str | None, now_ms: int) -> bool:
    """Whether this execution may go on: no other one runs, and the event that began it has not had its turn already.

    Asked again by the execution whose turn it is, the answer is the same. Nothing is given back: a turn ends with its
    execution, however that ends. `event` is the id of the event, or None where a person began the execution.
    """
    mine = {"execution": execution, "event": event, "time": iso(now_ms)}
    while True:
        held, version = store.get_versioned(TURN)
        if held is not None:
            if held["execution"] == execution:
                return True
            if event is not None and held["event"] == event:
                return False
            running = workflow.is_running(held["execution"])
            if running or (running is None and now_ms - from_iso(held["time"]) < UNSEEN_MS):
                return False
        if store.put_json_if(TURN, mine, version):
            return True
