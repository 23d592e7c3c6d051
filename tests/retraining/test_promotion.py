"""What serves and why: versions, the alias, the pointer and the ledger, on a cloud that lives in this process."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import requests

from retrue import artifact, promotion
from retrue.classifier import Classifier
from retrue.errors import AliasMoved, NotFound, ReleaseRefused, StackError
from retrue.lake import Lake
from retrue.records import LedgerEntry, Prediction, iso, new_id
from retrue.release import Release, serving_model
from retrue.settings import Release as Settings
from retrue.workflow import run_of

PARAMETER = "/retrue/test/model"
NOW = 1_767_259_800_000  # 2026-01-01T09:30Z
REQUEST = {"reason": "the texts drifted"}
EXECUTION = "arn:aws:states:eu-central-1:123456789012:execution:retrue-test-retrain:" + "0f1e2d3c-" * 9


def answer(*values: Any) -> None:
    """What the next versions that are asked will answer."""
    body = {"results": [json.dumps(value) for value in values], "region": "eu-central-1"}
    said = requests.post("http://motoapi.amazonaws.com/moto-api/static/lambda-simple/response", json=body, timeout=10)
    assert said.status_code == 201


def served(store: Lake, release: Release, model: str, minute: int, reason: str = "better") -> str:
    """Publish and promote a model; its version."""
    store.put(f"models/{model}/{artifact.MANIFEST}", b"{}")
    version: str = promotion.publish(store, release, model, f"run-{minute}")["version"]
    candidate = {"model": model, "reason": reason, "evidence": {"rows": 40}}
    live = release.live_version()
    promotion.promote(store, release, f"run-{minute}", REQUEST, candidate, version, live, NOW + minute)
    return version


def back(store: Lake, release: Release, minute: int, version: str | None = None) -> LedgerEntry:
    return promotion.roll_back(store, release, "complaints", NOW + minute, version)


def serving(release: Release) -> tuple[str, str | None]:
    """The version that answers, and the model that the pointer names."""
    return release.live_version(), serving_model(PARAMETER, release.ssm).rstrip("/").rsplit("/", 1)[-1]


# publish and validate
def test_a_model_is_published_from_its_own_folder(lake: Lake, release: Release) -> None:
    lake.put(f"models/aaa/{artifact.MANIFEST}", b"{}")
    version = promotion.publish(lake, release, "aaa", "run-1")["version"]
    assert release.model_of(version) == "s3://retrue-test/models/aaa/"
    described = release.client.get_function_configuration(FunctionName="predict", Qualifier=version)
    assert described["Description"] == "model aaa, run run-1"
    assert serving(release) == ("1", "none")


@pytest.mark.parametrize("model", ["gone", "", "aaa/../aaa", "aaa/", "half"])
def test_only_a_whole_model_in_the_lake_can_be_published(lake: Lake, release: Release, model: str) -> None:
    lake.put(f"models/aaa/{artifact.MANIFEST}", b"{}")
    lake.put(f"models/half/{artifact.MODEL}", b"")
    with pytest.raises(NotFound, match="`retrue ledger` lists those that served"):
        promotion.publish(lake, release, model, "run-1")


def probed(classifier: Classifier, texts: Sequence[str]) -> dict[str, Any]:
    return {"model": classifier.model, "scores": [classifier.score(text).scores for text in texts]}


@pytest.fixture
def golden(lake: Lake, release: Release, tiny_model: Path, classifier: Classifier) -> list[str]:
    """The golden texts of a model that is published as version 2."""
    lake.upload_folder(tiny_model, f"models/{classifier.model}/")
    assert promotion.publish(lake, release, classifier.model, "run-1") == {"version": "2"}
    return [item["text"] for item in json.loads((tiny_model / artifact.GOLDEN).read_text())]


def test_a_version_that_answers_as_its_model_must_is_valid(
    lake: Lake, release: Release, classifier: Classifier, golden: list[str]
) -> None:
    answer(probed(classifier, golden))
    assert promotion.validate(lake, release, classifier.model, "2")["worst"] < 1e-6


def test_small_differences_of_another_machine_are_tolerated(
    lake: Lake, release: Release, classifier: Classifier, golden: list[str]
) -> None:
    said = probed(classifier, golden)
    said["scores"][-1]["negative"] += 9e-4
    answer(said)
    assert promotion.validate(lake, release, classifier.model, "2")["worst"] == pytest.approx(9e-4)


@pytest.mark.parametrize("place", [0, -1])
@pytest.mark.parametrize(("change", "told"), [(0.002, "0.0020"), (-0.3, "0.3000"), (float("nan"), "inf")])
def test_other_scores_are_refused(
    lake: Lake, release: Release, classifier: Classifier, golden: list[str], place: int, change: float, told: str
) -> None:
    said = probed(classifier, golden)
    said["scores"][place]["positive"] += change
    answer(said)
    with pytest.raises(ReleaseRefused) as raised:
        promotion.validate(lake, release, classifier.model, "2")
    assert str(raised.value) == f"version 2 differs from its model's golden scores by {told}"


def test_a_version_that_serves_another_model_is_refused(
    lake: Lake, release: Release, classifier: Classifier, golden: list[str]
) -> None:
    answer({**probed(classifier, golden), "model": "ffffffffffff"})
    with pytest.raises(ReleaseRefused, match=f"serves model ffffffffffff where {classifier.model} was expected"):
        promotion.validate(lake, release, classifier.model, "2")


# the canary
SETTINGS = Settings("retrue-test", "test", PARAMETER, "predict", canary_share=0.2, canary_minutes=3)


def weights(release: Release) -> dict[str, float]:
    alias = release.client.get_alias(FunctionName="predict", Name="live")
    return dict(alias.get("RoutingConfig", {}).get("AdditionalVersionWeights", {}))


class Canary:
    """A model that is published beside a champion."""

    def __init__(self, lake: Lake, release: Release, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.lake, self.release, self.patch = lake, release, patch
        self.model = artifact.identity(folder)
        served(lake, release, "champion", 1)
        lake.upload_folder(folder, f"models/{self.model}/")
        self.version: str = promotion.publish(lake, release, self.model, "run-2")["version"]
        self.golden = lake.get_json(f"models/{self.model}/{artifact.GOLDEN}")

    def look(
        self,
        minutes: float,
        counts: tuple[int, int, float | None] = (0, 0, None),
        said: float = 1.0,
        shared: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """What is found after so many minutes, where CloudWatch counted so, and the champion said so to golden inputs.

        The local cloud in this process counts no calls.
        """
        usual = (500, 0, 40.0)
        self.patch.setattr(self.release, "calls", lambda _, one, *__: counts if one == self.version else usual)
        ours, theirs = (
            {"model": model, "scores": [{"negative": score, "positive": 1 - score} for _ in self.golden]}
            for model, score in ((self.model, 1.0), ("champion", said))
        )
        answer(ours, theirs)
        begun = shared or promotion.share(self.release, SETTINGS, self.version, NOW)
        now = NOW + round(60_000 * minutes)
        return promotion.watch(self.lake, self.release, SETTINGS, self.model, self.version, begun, now)


@pytest.fixture
def canary(lake: Lake, release: Release, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Canary:
    return Canary(lake, release, tiny_model, monkeypatch)


def test_a_version_is_given_its_share_where_there_is_a_champion(lake: Lake, release: Release) -> None:
    lake.put(f"models/aaa/{artifact.MANIFEST}", b"{}")
    lake.put(f"models/bbb/{artifact.MANIFEST}", b"{}")
    first = promotion.publish(lake, release, "aaa", "run-1")["version"]
    assert promotion.share(release, SETTINGS, first, NOW)["on"] is False
    assert weights(release) == {}
    champion = served(lake, release, "aaa", 1)
    second = promotion.publish(lake, release, "bbb", "run-2")["version"]
    shared = promotion.share(release, SETTINGS, second, NOW)
    assert shared == {"on": True, "live": champion, "since": NOW, "until": NOW + 180_000, "wait": 60}
    assert weights(release) == {second: 0.2}
    none = dataclasses.replace(SETTINGS, canary_share=0.0)
    assert promotion.share(release, none, second, NOW)["on"] is False


def test_a_quiet_canary_is_watched_to_its_end_and_harmless(canary: Canary) -> None:
    found = canary.look(1)
    assert (found["state"], found["shared"]["wait"]) == ("watching", 60)
    found = canary.look(2.5, shared=found["shared"])
    assert (found["state"], found["shared"]["wait"]) == ("watching", 30)
    found = canary.look(3, shared=found["shared"])
    assert (found["state"], found["reason"]) == ("harmless", "")
    assert found["evidence"]["agreement"] == 1.0


def test_a_canary_that_fails_is_harmful_before_its_end(canary: Canary) -> None:
    found = canary.look(1, counts=(50, 20, 41.0))
    assert found["state"] == "harmful"
    assert "20 of 50 calls failed" in found["reason"]


def test_a_canary_that_answers_golden_inputs_otherwise_is_harmful(canary: Canary) -> None:
    found = canary.look(3, said=0.0)
    assert (found["state"], found["evidence"]["agreement"]) == ("harmful", 0.0)


def said(model: str, n: int, negative: float, source: str = "http", ms: int = NOW) -> list[Prediction]:
    scores = {"negative": negative, "positive": 1 - negative}
    return [
        Prediction(new_id(ms + k, k.to_bytes(10)), iso(ms + k), model, "negative", 0.5, scores, 9, False, [0.5], source)
        for k in range(n)
    ]


def test_what_callers_were_answered_by_both_is_compared(canary: Canary, lake: Lake) -> None:
    model = canary.model
    jobs = said("champion", 300, 1.0, source="csv:one")  # no version of the predict function answered these
    before = said(model, 300, 0.0, ms=NOW - 10_000)
    lake.write_predictions(jobs)
    lake.write_predictions(before)
    lake.write_predictions(said("champion", 200, 0.2))
    lake.write_predictions(said(model, 60, 0.3, ms=NOW + 1_000))
    found = canary.look(3)
    assert (found["state"], found["evidence"]["distance"]) == ("harmless", pytest.approx(0.1))
    assert (found["evidence"]["answers"], found["evidence"]["champion_answers"]) == (60, 200)
    lake.write_predictions(said(model, 400, 0.9, ms=NOW + 60_000))
    found = canary.look(3)
    assert found["state"] == "harmful"
    assert "lie 0.62 from the champion's" in found["reason"]


def test_a_harmful_version_is_withdrawn_and_that_is_written_down(canary: Canary, lake: Lake, release: Release) -> None:
    live, found = release.live_version(), canary.look(1, counts=(50, 20, 41.0))
    assert weights(release) == {canary.version: 0.2}
    entry = promotion.withdraw(lake, release, "run-2", REQUEST, "bbb", found, NOW + 9)
    assert (weights(release), release.live_version()) == ({}, live)
    assert lake.ledger()[-1] == entry
    assert (entry.action, entry.model, entry.previous_version) == ("withdrawn", "bbb", live)
    assert entry.reason.startswith("the texts drifted: 20 of 50 calls failed")
    assert entry.evidence is not None
    assert entry.evidence["failed"] == 20


def test_a_failed_run_leaves_no_share_to_its_version(canary: Canary, lake: Lake, release: Release) -> None:
    canary.look(1)
    promotion.fail(lake, release, EXECUTION, {"error": {}}, NOW)
    assert weights(release) == {}


def test_a_deployment_in_between_has_the_model_published_again(canary: Canary, lake: Lake, release: Release) -> None:
    begun = canary.look(1)["shared"]
    deployed = promotion.publish(lake, release, "champion", "a deployment")["version"]
    release.client.update_alias(FunctionName="predict", Name="live", FunctionVersion=deployed)
    with pytest.raises(AliasMoved, match=f"from version {begun['live']} to {deployed}: the model needs its code"):
        canary.look(2, shared=begun)
    assert weights(release) == {}
    model, version = canary.model, canary.version
    with pytest.raises(AliasMoved):
        promotion.promote(lake, release, "run-2", REQUEST, {"model": model, "reason": ""}, version, begun["live"], NOW)
    assert release.live_version() == deployed


def test_a_release_ends_where_another_model_began_to_serve(canary: Canary, lake: Lake, release: Release) -> None:
    begun = canary.look(1)["shared"]
    served(lake, release, "bbb", 5)
    with pytest.raises(ReleaseRefused, match="serves another model since this release began"):
        canary.look(2, shared=begun)


# the ledger
def test_a_promotion_moves_everything_and_is_written_down(lake: Lake, release: Release) -> None:
    first = served(lake, release, "aaa", 1)
    second = served(lake, release, "bbb", 2, "fewer errors")
    assert serving(release) == (second, "bbb")
    assert lake.ledger() == [
        LedgerEntry(
            time=iso(NOW + 1),
            action="promoted",
            model="aaa",
            version=first,
            previous_version="1",
            reason="the texts drifted: better",
            run="run-1",
            evidence={"rows": 40},
        ),
        LedgerEntry(
            time=iso(NOW + 2),
            action="promoted",
            model="bbb",
            version=second,
            previous_model="aaa",
            previous_version=first,
            reason="the texts drifted: fewer errors",
            run="run-2",
            evidence={"rows": 40},
        ),
    ]


def test_a_rejection_is_written_down_and_moves_nothing(lake: Lake, release: Release) -> None:
    first = served(lake, release, "aaa", 1)
    candidate = {"model": "bbb", "promote": False, "reason": "not better", "evidence": {"rows": 9}}
    entry = promotion.reject(lake, release, "run-2", REQUEST, candidate, NOW + 2)
    assert serving(release) == (first, "aaa")
    assert lake.ledger()[1:] == [entry]
    assert entry == LedgerEntry(
        time=iso(NOW + 2),
        action="rejected",
        model="bbb",
        reason="the texts drifted: not better",
        previous_version=first,
        run="run-2",
        evidence={"rows": 9},
    )


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            {"Error": "BadDataset", "Cause": '{"errorMessage": "no dataset", "errorType": "BadDataset"}'},
            "BadDataset: no dataset",
        ),
        ({"Error": "States.Timeout", "Cause": "it took too long"}, "States.Timeout: it took too long"),
        ({"Error": "TrainingFailed", "Cause": "x" * 5_000 + "end"}, "TrainingFailed: " + "x" * 1_997 + "end"),
        ({"Error": "Odd", "Cause": '["a list"]'}, 'Odd: ["a list"]'),
        ({"Error": "Odd", "Cause": '{"FailureReason": "no room"}'}, 'Odd: {"FailureReason": "no room"}'),
        ({"Error": "States.HeartbeatTimeout"}, "States.HeartbeatTimeout: "),
        ({}, "error: "),
    ],
)
def test_a_failure_is_written_down_with_its_own_words(
    lake: Lake, release: Release, error: dict[str, Any], reason: str
) -> None:
    told = promotion.fail(lake, release, EXECUTION, {"error": error}, NOW)
    (entry,) = lake.ledger()
    assert told == {"action": "failed", "reason": reason}
    assert (entry.action, entry.model, entry.reason, entry.previous_version) == ("failed", None, reason, "1")
    assert entry.run == run_of(EXECUTION)
    assert serving(release) == ("1", "none")


def published(store: Lake, release: Release) -> dict[str, Any]:
    """The state of a run that has published model bbb where aaa serves."""
    served(store, release, "aaa", 1)
    store.put(f"models/bbb/{artifact.MANIFEST}", b"{}")
    candidate = {"model": "bbb", "reason": "better", "evidence": {"rows": 40}}
    return {
        "run": "run-2",
        "request": REQUEST,
        "candidate": candidate,
        "release": promotion.publish(store, release, "bbb", "run-2"),
        "watched": {"shared": {"on": False, "live": release.live_version()}},
        "error": {"Error": "States.Timeout", "Cause": "it took too long"},
    }


def test_a_run_that_published_and_moved_nothing_has_failed(lake: Lake, release: Release) -> None:
    state = published(lake, release)
    told = promotion.fail(lake, release, EXECUTION, state, NOW + 2)
    assert told == {"action": "failed", "reason": "States.Timeout: it took too long"}
    assert [entry.action for entry in lake.ledger()] == ["promoted", "failed"]
    assert serving(release) == (state["watched"]["shared"]["live"], "aaa")


def test_what_a_promotion_left_undone_when_the_alias_had_moved_is_done(lake: Lake, release: Release) -> None:
    state = published(lake, release)
    version, previous = state["release"]["version"], state["watched"]["shared"]["live"]
    release.client.update_alias(FunctionName="predict", Name="live", FunctionVersion=version)
    told = promotion.fail(lake, release, EXECUTION, state, NOW + 2)
    assert told["action"] == "promoted"
    assert told["reason"] == f"version {version} serves, and after that came States.Timeout: it took too long"
    assert serving(release) == (version, "bbb")
    entry = lake.ledger()[-1]
    assert (entry.action, entry.version, entry.run) == ("promoted", version, "run-2")
    assert (entry.previous_version, entry.previous_model) == (previous, "aaa")
    assert entry.evidence == {"rows": 40}
    assert back(lake, release, 3).version == previous


def test_an_error_after_a_promotion_was_written_down_changes_nothing_about_it(lake: Lake, release: Release) -> None:
    state = published(lake, release)
    versions = (state["release"]["version"], state["watched"]["shared"]["live"])
    promotion.promote(lake, release, state["run"], state["request"], state["candidate"], *versions, NOW + 2)
    before = lake.ledger()
    told = promotion.fail(lake, release, EXECUTION, {**state, "promoted": {"StatusCode": 200}}, NOW + 3)
    assert told["action"] == "promoted"
    assert lake.ledger() == before
    assert serving(release) == (state["release"]["version"], "bbb")


# rolling back
def test_rolling_back_moves_everything_and_is_written_down(lake: Lake, release: Release) -> None:
    first, second = served(lake, release, "aaa", 1), served(lake, release, "bbb", 2)
    entry = back(lake, release, 3)
    assert serving(release) == (first, "aaa")
    assert lake.ledger()[2:] == [entry]
    assert entry == LedgerEntry(
        time=iso(NOW + 3),
        action="rolled-back",
        model="aaa",
        version=first,
        previous_model="bbb",
        previous_version=second,
        reason="complaints",
    )


def test_rolling_back_again_goes_further_back_and_never_to_what_was_left(lake: Lake, release: Release) -> None:
    versions = [served(lake, release, model, n) for n, model in enumerate(("aaa", "bbb", "ccc"))]
    assert [back(lake, release, 10 + n).version for n in range(2)] == [versions[1], versions[0]]
    with pytest.raises(StackError, match="no model that served before this one"):
        back(lake, release, 20)
    assert serving(release) == (versions[0], "aaa")
    assert len(lake.ledger()) == 5


def test_after_a_rollback_a_new_promotion_goes_back_to_what_it_replaced(lake: Lake, release: Release) -> None:
    first = served(lake, release, "aaa", 1)
    served(lake, release, "bbb", 2)
    back(lake, release, 3)
    third, fourth = served(lake, release, "ccc", 4), served(lake, release, "ddd", 5)
    assert [back(lake, release, 6).version, back(lake, release, 7).version] == [third, first]
    assert fourth not in {third, first}


def test_a_rollback_to_a_named_version_skips_those_between(lake: Lake, release: Release) -> None:
    versions = [served(lake, release, model, n) for n, model in enumerate(("aaa", "bbb", "ccc", "ddd"))]
    assert back(lake, release, 10, versions[1]).model == "bbb"
    assert back(lake, release, 11).version == versions[0]


def test_a_version_that_was_left_can_be_named_and_what_was_left_for_it_stays_left(lake: Lake, release: Release) -> None:
    versions = [served(lake, release, model, n) for n, model in enumerate(("aaa", "bbb", "ccc"))]
    assert back(lake, release, 10).version == versions[1]
    assert back(lake, release, 11, versions[2]).model == "ccc"
    assert back(lake, release, 12).version == versions[0]


def test_a_promotion_that_was_retried_counts_once(lake: Lake, release: Release) -> None:
    first, second = served(lake, release, "aaa", 1), served(lake, release, "bbb", 2)
    candidate = {"model": "bbb", "reason": "better"}
    entry = promotion.promote(lake, release, "run-2", REQUEST, candidate, second, first, NOW + 3)
    assert (entry.previous_version, entry.previous_model) == (first, "aaa")
    assert back(lake, release, 4).version == first


def test_rejections_and_failures_between_change_no_way_back(lake: Lake, release: Release) -> None:
    first = served(lake, release, "aaa", 1)
    served(lake, release, "bbb", 2)
    promotion.reject(lake, release, "run-3", REQUEST, {"model": "ccc", "reason": "worse"}, NOW + 3)
    promotion.fail(lake, release, EXECUTION, {"error": {}}, NOW + 4)
    assert back(lake, release, 5).version == first


def test_an_alias_that_was_moved_by_hand_goes_back_to_what_the_ledger_knows(lake: Lake, release: Release) -> None:
    first, second = served(lake, release, "aaa", 1), served(lake, release, "bbb", 2)
    lake.put(f"models/ccc/{artifact.MANIFEST}", b"{}")
    unknown = promotion.publish(lake, release, "ccc", "by hand")["version"]
    release.move(unknown, "s3://retrue-test/models/ccc/")
    assert back(lake, release, 3).version == second
    assert back(lake, release, 4).version == first


def test_what_was_moved_by_hand_is_the_way_back_from_what_replaced_it(lake: Lake, release: Release) -> None:
    first, _ = served(lake, release, "aaa", 1), served(lake, release, "bbb", 2)
    release.move(first, "s3://retrue-test/models/aaa/")
    served(lake, release, "ccc", 3)
    assert back(lake, release, 4).version == first
    with pytest.raises(StackError, match="no model that served before"):
        back(lake, release, 5)


def test_before_the_second_promotion_there_is_nothing_to_go_back_to(lake: Lake, release: Release) -> None:
    with pytest.raises(StackError, match="no model that served before"):
        back(lake, release, 1)
    first = served(lake, release, "aaa", 2)
    with pytest.raises(StackError, match="no model that served before"):
        back(lake, release, 3)
    assert serving(release) == (first, "aaa")


def test_the_version_that_serves_is_no_way_back(lake: Lake, release: Release) -> None:
    first = served(lake, release, "aaa", 1)
    with pytest.raises(StackError, match=f"version {first} serves already"):
        back(lake, release, 2, first)


def test_a_version_without_a_model_is_no_way_back(lake: Lake, release: Release) -> None:
    first = served(lake, release, "aaa", 1)
    with pytest.raises(StackError, match="version 1 carries no model"):
        back(lake, release, 2, "1")
    assert serving(release) == (first, "aaa")
    assert [entry.action for entry in lake.ledger()] == ["promoted"]
