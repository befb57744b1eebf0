"""The Delta table itself: its current version, and commits that are on disk before anybody hears of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import structlog
from deltalake import CommitProperties, DeltaTable, PostCommitHookProperties, Transaction
from deltalake.exceptions import DeltaError

from analytics_core.errors import StorageError
from analytics_core.lake import durable
from analytics_core.lake.files import (
    PARTITION_BY,
    TABLE_SCHEMA,
    LakeFile,
    TableVersion,
    add_action,
    read_version,
    remove_action,
)

_POSITION: Final = "store-writer"
"""The application transaction whose version is the log position: of two commits that race for it one fails."""
_LAYOUT: Final = "maintenance"
"""The one that counts changes of existing files. With it an outdated view cannot remove a file twice."""
_RETAINED: Final = "retention"
"""The one whose version is when retention last ran, in epoch seconds."""
_CHECKPOINT_EVERY: Final = 50
_SETTINGS: Final[dict[str, str | None]] = {
    "delta.logRetentionDuration": "interval 1 hours",
    "delta.deletedFileRetentionDuration": "interval 1 hours",
}
_log = structlog.get_logger(__name__)


class Table:
    """One Delta table and what is known of its newest version. The caller sees to one commit at a time.

    :raises StorageError: when it cannot be opened or made.
    """

    current: TableVersion
    """Swapped as a whole, so that reading it needs no lock."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._log = root / "_delta_log"
        self._outdated = False
        try:
            if self._log.is_dir():
                durable.mend(self._log)
            if not DeltaTable.is_deltatable(str(root)):
                root.mkdir(parents=True, exist_ok=True)
                DeltaTable.create(
                    root, TABLE_SCHEMA, mode="error", partition_by=list(PARTITION_BY), configuration=_SETTINGS
                )
            self._reload()
            self._id = str(self._delta.metadata().id)
        except (DeltaError, OSError) as error:
            raise StorageError(f"the lake at {root} cannot be opened: {_reason(error)}") from error
        self._checkpointed = durable.last_checkpoint(self._log)

    @property
    def id(self) -> str:
        """As it was made: another for another table in the same place."""
        return self._id

    @property
    def retained_at(self) -> int:
        """When retention last ran, epoch seconds; 0 for never."""
        return self._delta.transaction_version(_RETAINED) or 0

    def commit(
        self,
        added: Sequence[LakeFile] = (),
        gone: Sequence[LakeFile] = (),
        *,
        position: int | None = None,
        retained_at: int | None = None,
        data_change: bool = True,
    ) -> bool:
        """Change the current version; False when a concurrent change came first and this one must be planned anew.

        The files of a failed commit stay: whether it took place is known only after `refresh`, and vacuum finds what
        nobody refers to.

        :raises StorageError: when the change failed, or is not known to be on disk.
        """
        actions = [
            *(add_action(file, data_change=data_change) for file in added),
            *(remove_action(file, data_change=data_change) for file in gone),
        ]
        self._outdated = True
        try:
            self._delta.create_write_transaction(
                actions,
                "append",
                TABLE_SCHEMA,
                list(PARTITION_BY),
                commit_properties=CommitProperties(app_transactions=self._marks(gone, position, retained_at)),
                # not by the library: a checkpoint must be on disk before the commits that it replaces may go
                post_commithook_properties=PostCommitHookProperties(
                    create_checkpoint=False, cleanup_expired_logs=False
                ),
            )
            self._advance(added, gone, position)
        except (DeltaError, OSError) as error:
            if "Concurrent transaction failed" in str(error):
                return False
            raise StorageError(f"committing to the lake at {self._root} failed: {_reason(error)}") from error
        return True

    def _marks(self, gone: Sequence[LakeFile], position: int | None, retained_at: int | None) -> list[Transaction]:
        layout = (self._delta.transaction_version(_LAYOUT) or 0) + 1 if gone else None
        wanted = ((_POSITION, position), (_LAYOUT, layout), (_RETAINED, retained_at))
        return [Transaction(name, version) for name, version in wanted if version is not None]

    def _advance(self, added: Sequence[LakeFile], gone: Sequence[LakeFile], position: int | None) -> None:
        """See the commit just made, once it is on disk."""
        self._delta.update_incremental()
        number = self._delta.version()
        durable.sync_file(durable.commit_path(self._log, number))
        durable.sync_directory(self._log)
        if number != self.current.number + 1:
            self._reload()
            return
        self.current = self.current.changed(number, position, added, gone)
        self._outdated = False
        if number - self._checkpointed >= _CHECKPOINT_EVERY:
            self._checkpoint()

    def refresh(self) -> None:
        """Read the log again after a failed commit, which may have taken place or not.

        :raises StorageError: when that fails too.
        """
        if self._outdated:
            try:
                self._reload()
            except (DeltaError, OSError) as error:
                raise StorageError(f"the lake at {self._root} cannot be read: {_reason(error)}") from error

    def _reload(self) -> None:
        self._delta = DeltaTable(self._root)
        newest = durable.commit_path(self._log, self._delta.version())
        if newest.exists():
            durable.rewrite_durably(newest)
        self.current = read_version(self._delta, self._delta.transaction_version(_POSITION) or 0)
        self._outdated = False

    def shorten_log(self) -> None:
        """Sum up the log and delete commits of over an hour ago."""
        if self._checkpoint():
            try:
                self._delta.cleanup_metadata()
            except (DeltaError, OSError) as error:
                _log.warning("lake_log_cleanup_failed", reason=_reason(error))

    def _checkpoint(self) -> bool:
        """Nothing depends on a checkpoint, so a failure is no error: the next start reads a longer log."""
        number = self.current.number
        if number == self._checkpointed:
            return True
        try:
            self._delta.create_checkpoint()
            durable.sync_checkpoint(self._log, number)
        except (DeltaError, OSError) as error:
            _log.warning("lake_checkpoint_failed", number=number, reason=_reason(error))
            return False
        self._checkpointed = number
        return True


def _reason(error: Exception) -> str:
    """The library's message on one line, without its terminal colours."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split())
