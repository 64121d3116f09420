"""Opens a storage for many workers: started at once, killed, or cut off from their server for a while.

Optuna's storages are used as they are; what is added guards against faults that end a worker or lose a study:
databases.py, journals.py and grpc_proxy.py, one kind of storage each. Imports optuna, never torch.
"""

from optuna_aznas.storage.journals import repair_journal
from optuna_aznas.storage.opening import open_storage
from optuna_aznas.storage.passwords import redact_url

__all__ = ["open_storage", "redact_url", "repair_journal"]
