"""What a stage supplies to the server: callbacks, result types and file roots, each with a default that does nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coordinator.scheduling.events import TaskDone, TaskFailed, TaskProgress, TaskQuarantined
from coordinator.scheduling.progress import StageProgress
from coordinator.scheduling.records import TaskSpec
from coordinator.server.lease_files import NO_FILES, LeaseFiles
from coordinator.wire.messages import Weights


@dataclass(frozen=True)
class StageHooks:
    """The server calls every hook in the thread of `Server.run`.

    Attributes:
        on_task_done: Commit a result, idempotently; return the tasks that it opens. A StorageError ends the run, resumable.
        on_quarantined: A task was given up.
        on_lease_event: A lease reports progress, or a task with `no_retry` ended without a result.
        on_tick: Called five times a second.
        has_more_work: True while the stage may still add tasks: the run has no outcome yet.
        status_line: The stage's own line of the status; "" for none.
        progress: How far the stage is; None where it has no end.
        get_weights: Return the policy with this sha256, or None when it is unknown.
        lease_files: Return which files a lease of a task may upload and name in its result.
        check_result: Check a result of the type below against its task and its files; the problem is raised as VerificationError.
        result_types: Type of the result of a task kind. The server rejects a result that does not convert to it.
        upload_roots: Folders that workers may write to besides the data folder's own, by the first part of a path.
        download_roots: Further folders that workers may read from, by the first part of a path.
    """

    on_task_done: Callable[[TaskDone], Iterable[TaskSpec] | None] = lambda done: None
    on_quarantined: Callable[[TaskQuarantined], None] = lambda event: None
    on_lease_event: Callable[[TaskProgress | TaskFailed], None] = lambda event: None
    on_tick: Callable[[], None] = lambda: None
    has_more_work: Callable[[], bool] = lambda: False
    status_line: Callable[[], str] = lambda: ""
    progress: Callable[[], StageProgress | None] = lambda: None
    get_weights: Callable[[str], Weights | None] = lambda sha256: None
    lease_files: Callable[[TaskSpec], LeaseFiles] = lambda task: NO_FILES
    check_result: Callable[[TaskSpec, Any], None] = lambda task, output: None
    result_types: Mapping[str, Any] = field(default_factory=dict)
    upload_roots: Mapping[str, Path] = field(default_factory=dict)
    download_roots: Mapping[str, Path] = field(default_factory=dict)
