"""What CloudWatch is told: lines in the Embedded Metric Format on stdout, and the one list of metric names."""

from collections.abc import Mapping
from enum import StrEnum

from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.metrics.provider.cloudwatch_emf.cloudwatch import AmazonCloudWatchEMFProvider

NAMESPACE, DIMENSION = "retrue", "Environment"
VERSION = "Version"  # the second dimension of what a canary is judged by


class Metric(StrEnum):
    """Every metric that retrue publishes; the dashboard, the alarms and the guides use these names."""

    ACCURACY = "Accuracy"
    ACCURACY_EVIDENCE = "AccuracyEvidence"
    ACCURACY_FIRED = "AccuracyFired"
    ESTIMATED_ACCURACY = "EstimatedAccuracy"
    F1_MACRO = "F1Macro"
    LABELLED_PREDICTIONS = "LabelledPredictions"
    DRIFT_DISTANCE = "DriftDistance"
    DRIFT_STATISTIC = "DriftStatistic"
    DRIFT_P = "DriftP"
    DRIFT_EVIDENCE = "DriftEvidence"
    DRIFT_FIRED = "DriftFired"
    WINDOW_ROWS = "WindowRows"
    MODEL_AGE_HOURS = "ModelAgeHours"
    LABEL_AGE_HOURS = "LabelAgeHours"
    TEXT_AGE_HOURS = "TextAgeHours"
    CHECK_AGE_HOURS = "CheckAgeHours"
    HEARTBEAT = "Heartbeat"
    JOB_ROWS = "JobRows"
    JOB_REJECTED = "JobRejected"
    LABELS_WANTED = "LabelsWanted"
    RETRAIN_REQUESTED = "RetrainRequested"
    FAILED_REQUESTS = "FailedRequests"  # by version, too


COUNTS = frozenset(
    {
        Metric.LABELLED_PREDICTIONS,
        Metric.ACCURACY_FIRED,
        Metric.DRIFT_FIRED,
        Metric.WINDOW_ROWS,
        Metric.HEARTBEAT,
        Metric.JOB_ROWS,
        Metric.JOB_REJECTED,
        Metric.LABELS_WANTED,
        Metric.RETRAIN_REQUESTED,
        Metric.FAILED_REQUESTS,
    }
)


def publish(environment: str, values: Mapping[Metric, float], now_ms: int, version: str = "") -> None:
    """Write one line for these values, by environment, and by version where one is named; none for no values."""
    if not values:
        return
    provider = AmazonCloudWatchEMFProvider(namespace=NAMESPACE)
    # With the service's name as a second dimension these would be other metrics than those the alarms watch.
    provider.service = ""
    provider.add_dimension(DIMENSION, environment)
    if version:
        provider.add_dimension(VERSION, version)
    for metric, value in values.items():
        provider.add_metric(metric.value, MetricUnit.Count if metric in COUNTS else MetricUnit.NoUnit, value)
    provider.set_timestamp(now_ms)
    provider.flush_metrics()
