"""Events of the ledger for Google's own goodput measurement (github.com/AI-Hypercomputer/ml-goodput-measurement).

Its recorder writes them to Cloud Logging; its calculator and dashboards read them there, over all restarts of a job.
"""

from datetime import UTC, datetime


def open_log(name: str, job: str) -> "CloudLog | None":
    """Opens the log that config.log.cloud_goodput = `name` asks for; None for "".

    job: the same name over all restarts. Raises ValueError where the extra or Google's credentials are missing.
    """
    if not name:
        return None
    try:
        from google.auth.exceptions import GoogleAuthError
        from ml_goodput_measurement.src.goodput import GoodputRecorder
        return CloudLog(GoodputRecorder(job, name, logging_enabled=True))
    except ImportError as error:
        raise ValueError(f"log.cloud_goodput = {name!r} needs the extra `goodput`: pip install 'wamax[goodput]' "
                         f"({error})") from error
    except (GoogleAuthError, OSError) as error:  # OSError: there are credentials, but no project
        raise ValueError(f"log.cloud_goodput = {name!r}: Cloud Logging cannot be reached as anybody ({error}). Run "
                         "`gcloud auth application-default login`, or start on a machine with a service account; "
                         "GOOGLE_CLOUD_PROJECT names the project. Without: --config.log.cloud_goodput=") from error


class CloudLog:
    """Translator of the ledger's events into the recorder's words. Times are seconds since the epoch."""

    def __init__(self, recorder):
        self._recorder = recorder

    def begin_attempt(self, began: float) -> None:
        """Records that an attempt begins, with its preparation: everything before the first step."""
        self._recorder.record_job_start_time(_utc(began))
        self._recorder.record_training_preparation_start_time(_utc(began))

    def start_step(self, step: int, now: float) -> None:
        """Records that a step starts. The calculator takes a step's time from one start to the next."""
        self._recorder.record_step_start_time(step, _utc(now))

    def end_phase(self, phase: str, began: float, now: float) -> None:
        """Records that a phase ends. The recorder has no phase for waiting for data: it is part of the steps."""
        if phase == "compile":
            self._recorder.record_training_preparation_end_time(_utc(now))
        if phase in ("checkpoint", "evaluate"):
            self._recorder.record_custom_badput_event_start_time(_utc(began), phase)
            self._recorder.record_custom_badput_event_end_time(_utc(now), phase)

    def done(self, now: float) -> None:
        """Records that the job is done and will not be started again."""
        self._recorder.record_job_end_time(_utc(now))


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
